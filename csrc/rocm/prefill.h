// Many rows: WMMA on 16 x 16 x 16 tiles. A wave owns 16 * TilesM rows and 64 columns for its share of K.
//
// The columns of a wave are dealt out so that lane l holds columns 4 (l % 16) .. + 3: one 128-bit load per row of words gives
// the words of all four column tiles, and every word goes straight from memory to the registers of the only wave that
// needs it. Activations are shared by the waves of a block and double-buffered in LDS: the next step's global loads are in
// flight while this step is computed. Codes enter WMMA as exact integers; scale (and, for bf16, zero point) are applied to
// the float32 result of each 32 values of K, so no weight is ever rounded.
#pragma once

#include "arguments.h"
#include "formats.h"

namespace qcompile_rdna3 {

constexpr int kStep = 32;         // values of K per step; a group is a whole number of steps
constexpr int kStepStride = 40;   // in LDS: 80 bytes per row, so that 8 rows read at once lie in different banks
constexpr int kWaveColumns = 64;  // four tiles of 16

// TilesM: row tiles per wave. WavesM, WavesN, WavesK: how a block's waves share rows, columns and K.
template <int TilesM, int WavesM, int WavesN, int WavesK>
struct Tile {
  static constexpr int kTilesM = TilesM, kWavesM = WavesM, kWavesN = WavesN, kWavesK = WavesK;
  static constexpr int kRows = 16 * TilesM * WavesM;
  static constexpr int kColumns = kWaveColumns * WavesN;
  static constexpr int kSliceThreads = 32 * WavesM * WavesN;  // the threads that share one slice of K
  static constexpr int kThreads = kSliceThreads * WavesK;
  static constexpr int kPieces = kRows * 4 / kSliceThreads;  // 16-byte pieces of activations that a thread stages per step
  static_assert(kRows * 4 % kSliceThreads == 0, "every thread stages the same number of pieces");
  static_assert((WavesK & (WavesK - 1)) == 0, "the slices of K are summed in a tree");
  static constexpr int kBuffer = WavesK * kRows * kStepStride * 2;  // bytes of one of two buffers
  static constexpr int kSums = WavesK * kRows * 4;                  // bytes of one of two buffers of row sums (bf16)
  static constexpr int kTree = WavesK / 2 * kRows * kColumns * 4;   // bytes to hand over sums between slices
  static constexpr int kStaging = 2 * (kBuffer + kSums);
  static constexpr int kLds = kStaging > kTree ? kStaging : kTree;
  static_assert(kLds <= 65536, "LDS of a block");
};

#if QC_KERNEL_BODY

template <class Format, class T>
struct Prefill {
  using pair = typename Format::pair;
  using fragment = typename Format::fragment;
  static constexpr int kTilesM = T::kTilesM;

  const Arguments& args;
  char* lds;
  int lane, slice, wave_m, wave_n, slice_thread;
  int row0, column, first, last;

  QC_INLINE Prefill(const Arguments& arguments, char* memory) : args(arguments), lds(memory) {
    const int wave = uniform(thread_index() >> 5);
    lane = thread_index() & 31;
    slice = wave / (T::kWavesM * T::kWavesN);
    wave_m = wave % T::kWavesM;
    wave_n = wave / T::kWavesM % T::kWavesN;
    slice_thread = thread_index() - slice * T::kSliceThreads;
    row0 = block_x() * T::kRows;
    column = block_y() * T::kColumns + wave_n * kWaveColumns + (lane & 15) * 4;
    const int units = args.k / kStep, parts = args.splits * T::kWavesK, part = block_z() * T::kWavesK + slice;
    first = uniform(units * part / parts);  // below 2^15 * 64
    last = uniform(units * (part + 1) / parts);
  }

  QC_INLINE uint16_t* activations(int buffer) const {
    return reinterpret_cast<uint16_t*>(lds + buffer * T::kBuffer) + slice * T::kRows * kStepStride;
  }
  QC_INLINE float* row_sums(int buffer) const {
    return reinterpret_cast<float*>(lds + 2 * T::kBuffer + buffer * T::kSums) + slice * T::kRows;
  }
  QC_INLINE int clamped(int unit) const {
    const int highest = args.k / kStep - 1;
    return unit < highest ? unit : highest;
  }

  QC_INLINE void fetch(int unit, bits8_t pieces[T::kPieces]) const {
    QC_UNROLL
    for (int j = 0; j < T::kPieces; ++j) {
      const int piece = slice_thread + j * T::kSliceThreads;
      const int here = piece >> 2, most = args.m - 1 - row0;
      const uint32_t row = here < most ? here : most;  // rows beyond M repeat the last one and are not written
      const uint16_t* base = args.a + (size_t)row0 * (size_t)args.k + clamped(unit) * kStep;
      pieces[j] = load_at<bits8_t>(base, row * (uint32_t)args.k * 2u + (piece & 3) * 16u);
    }
  }

  // A slice with one unit less than the others multiplies zeros at the end.
  QC_INLINE void stage(int buffer, int unit, bits8_t pieces[T::kPieces]) const {
    if (unit >= last) {
      QC_UNROLL
      for (int j = 0; j < T::kPieces; ++j) pieces[j] = bits8_t{};
    }
    QC_UNROLL
    for (int j = 0; j < T::kPieces; ++j) {
      const int piece = slice_thread + j * T::kSliceThreads, row = piece >> 2;
      store(activations(buffer) + row * kStepStride + (piece & 3) * 8, pieces[j]);
      if constexpr (Format::folds_zero) {
        const words4_t words = bits<words4_t>(pieces[j]);
        float sum = 0.0f;
        QC_UNROLL
        for (int i = 0; i < 4; ++i) sum = Format::add_pair(bits<pair>((uint32_t)words[i]), sum);
        sum += shuffle_xor<1>(sum);
        sum += shuffle_xor<2>(sum);
        // Within a tile of 16: the even rows, then the odd ones, as the halves of a wave hold them in the result. The four
        // threads of a row write the same value.
        store(row_sums(buffer) + (row & ~15) + (row & 1) * 8 + ((row & 15) >> 1), sum);
      }
    }
  }

  static QC_INLINE fragment join(const pair low[4], const pair high[4]) {
    words8_t words;
    QC_UNROLL
    for (int i = 0; i < 4; ++i) words[i] = bits<uint32_t>(low[i]);
    QC_UNROLL
    for (int i = 0; i < 4; ++i) words[4 + i] = bits<uint32_t>(high[i]);
    return bits<fragment>(words);
  }

  // Rows of tile m of this wave, 32 values of K, as the two operands of WMMA.
  QC_INLINE void read_rows(int buffer, int m, fragment a[2]) const {
    const uint16_t* row = activations(buffer) + ((wave_m * kTilesM + m) * 16 + (lane & 15)) * kStepStride;
    QC_UNROLL
    for (int half = 0; half < 2; ++half) {
      pair low[4], high[4];
      const words4_t first_words = load<words4_t>(row + half * 16), later_words = load<words4_t>(row + half * 16 + 8);
      QC_UNROLL
      for (int i = 0; i < 4; ++i) low[i] = bits<pair>((uint32_t)first_words[i]);
      QC_UNROLL
      for (int i = 0; i < 4; ++i) high[i] = bits<pair>((uint32_t)later_words[i]);
      a[half] = join(low, high);
    }
  }

  // Sums over the step of the rows that this lane holds in a result tile.
  QC_INLINE float8_t read_sums(int buffer, int m) const {
    const float* source = row_sums(buffer) + (wave_m * kTilesM + m) * 16 + (lane >> 4) * 8;
    const float4_t low = load<float4_t>(source), high = load<float4_t>(source + 4);
    float8_t out;
    QC_UNROLL
    for (int i = 0; i < 4; ++i) out[i] = low[i];
    QC_UNROLL
    for (int i = 0; i < 4; ++i) out[4 + i] = high[i];
    return out;
  }

  // One column tile of the step: sums[m][c] += scale * sum over 32 values of K of a (q - z).
  QC_INLINE void multiply(int buffer, int c, const fragment b[2], typename Format::Zero zero, float scale,
                          float8_t sums[kTilesM][4]) const {
    fragment a[2][2];
    read_rows(buffer, 0, a[0]);
    QC_UNROLL
    for (int m = 0; m < kTilesM; ++m) {
      if constexpr (!kReadsAhead) compiler_fence();
      if (m + 1 < kTilesM) read_rows(buffer, m + 1, a[(m + 1) % 2]);
      float8_t part = {};
      if constexpr (Format::folds_zero) part = read_sums(buffer, m) * -zero.folded;
      part = wmma(a[m % 2][0], b[0], part);
      part = wmma(a[m % 2][1], b[1], part);
      sums[m][c] += part * scale;
      pin(sums[m][c]);
    }
  }

  // Up to two row tiles keep a step's activations in registers and read the next weights a whole step ahead. With more,
  // registers are short: activations are read from LDS for every column tile (LDS has the bandwidth), and the next weights
  // replace these as soon as the last column tile is expanded; the other waves of the SIMD cover the wait.
  static constexpr bool kReadsAhead = kTilesM <= 2;

  template <bool Replaces>
  QC_INLINE void compute(int buffer, UnitWords& unit, const WeightReader& reader, int next, float8_t sums[kTilesM][4]) const {
    QC_UNROLL
    for (int c = 0; c < 4; ++c) {
      if constexpr (!kReadsAhead) compiler_fence();
      const typename Format::Zero zero = Format::zero(reader.stored_zero(unit, c) + (uint32_t)args.zero_offset);
      float scale = Format::widen(unit.group.scales[c]);
      pin(scale);  // as float32: a mixed-precision multiply-add could not be issued in pairs
      pair pairs[4][4];
      QC_UNROLL
      for (int row = 0; row < 4; ++row) Format::expand(unit.rows[row][c], zero, pairs[row]);
      const fragment b[2] = {join(pairs[0], pairs[1]), join(pairs[2], pairs[3])};
      if constexpr (Replaces) {
        if (c == 3) {
          compiler_fence();
          unit = reader.read_uniform(next);
        }
      }
      multiply(buffer, c, b, zero, scale, sums);
    }
  }

  // Adds the slices of K pairwise, always in the same order; afterwards slice 0 holds the sum.
  QC_INLINE void sum_slices(float8_t sums[kTilesM][4]) const {
    for (int half = T::kWavesK / 2; half >= 1; half /= 2) {
      lds_barrier();
      const int wave = wave_n * T::kWavesM + wave_m;
      const int giver = slice - half;
      if (slice >= half && slice < 2 * half) {
        float* to = reinterpret_cast<float*>(lds) + (giver * T::kWavesM * T::kWavesN + wave) * kTilesM * 1024 + lane * 4;
        QC_UNROLL
        for (int m = 0; m < kTilesM; ++m) {
          QC_UNROLL
          for (int c = 0; c < 4; ++c) {
            QC_UNROLL
            for (int part = 0; part < 2; ++part) {
              float4_t four;
              QC_UNROLL
              for (int i = 0; i < 4; ++i) four[i] = sums[m][c][part * 4 + i];
              store(to + ((m * 4 + c) * 2 + part) * 128, four);
            }
          }
        }
      }
      lds_barrier();
      if (slice < half) {
        const float* from =
            reinterpret_cast<const float*>(lds) + (slice * T::kWavesM * T::kWavesN + wave) * kTilesM * 1024 + lane * 4;
        QC_UNROLL
        for (int m = 0; m < kTilesM; ++m) {
          QC_UNROLL
          for (int c = 0; c < 4; ++c) {
            QC_UNROLL
            for (int part = 0; part < 2; ++part) {
              const float4_t four = load<float4_t>(from + ((m * 4 + c) * 2 + part) * 128);
              QC_UNROLL
              for (int i = 0; i < 4; ++i) sums[m][c][part * 4 + i] += four[i];
            }
          }
        }
      }
    }
  }

  QC_INLINE void write(const float8_t sums[kTilesM][4]) const {
    if (slice != 0 || column >= args.n) return;
    QC_UNROLL
    for (int m = 0; m < kTilesM; ++m) {
      QC_UNROLL
      for (int i = 0; i < 8; ++i) {
        const int row = row0 + (wave_m * kTilesM + m) * 16 + 2 * i + (lane >> 4);
        if (row >= args.m) continue;
        const size_t at = (size_t)row * (size_t)args.n + (size_t)column;
        if (args.splits == 1) {
          bits4_t four;
          QC_UNROLL
          for (int c = 0; c < 4; ++c) four[c] = Format::narrow(sums[m][c][i]);
          store(args.out + at, four);
        } else {
          float4_t four;
          QC_UNROLL
          for (int c = 0; c < 4; ++c) four[c] = sums[m][c][i];
          store(args.partial + (size_t)block_z() * (size_t)args.m * (size_t)args.n + at, four);
        }
      }
    }
  }

  QC_INLINE void run() const {
    const WeightReader reader(args, column < args.n ? column : args.n - 4);
    const int parts = args.splits * T::kWavesK;
    const int steps = (args.k / kStep + parts - 1) / parts;
    float8_t sums[kTilesM][4] = {};
    bits8_t pieces[T::kPieces];
    fetch(first, pieces);
    UnitWords words = reader.read_uniform(clamped(first));
    stage(0, first, pieces);
    lds_barrier();
    // The last step stands apart: loads under a condition would have to be waited for where the paths meet.
    for (int step = 0; step + 1 < steps; ++step) {
      const int next = first + step + 1;
      fetch(next, pieces);
      if constexpr (kReadsAhead) {
        const UnitWords following = reader.read_uniform(clamped(next));
        compute<false>(step & 1, words, reader, next, sums);
        words = following;
      } else {
        compute<true>(step & 1, words, reader, clamped(next), sums);
      }
      stage((step + 1) & 1, next, pieces);
      lds_barrier();
    }
    compute<false>((steps - 1) & 1, words, reader, 0, sums);
    sum_slices(sums);
    write(sums);
  }
};

#endif

}  // namespace qcompile_rdna3
