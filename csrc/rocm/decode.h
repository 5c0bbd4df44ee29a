// Few rows: every weight is read once, multiplied by dot2 for all rows, and summed in float32.
//
// A block of 256 threads owns 32 columns: 8 threads stand side by side (4 columns each, one 128-bit load per row of words,
// together one full 128-byte line), 32 stand along K (32 values each). The next unit's loads are issued before the current
// one is used. Activations go through LDS, where the act-order permutation is applied once for the whole block.
#pragma once

#include "arguments.h"
#include "formats.h"

namespace qcompile_rdna3 {

constexpr int kDecodeThreads = 256;
constexpr int kDecodeColumns = 32;  // per block
constexpr int kDecodeLanesN = 8;
constexpr int kDecodeLanesK = 32;
constexpr int kUnit = 32;          // values of K that one thread takes at a time; a group is a whole number of units
constexpr int kUnitStride = 40;    // in LDS: 80 bytes, so that 4 units read at once lie in different banks
constexpr int kDecodeUnits = 256;  // units that fit LDS, for all rows together
constexpr int kDecodeLds = kDecodeUnits * kUnitStride * 2;

#if QC_KERNEL_BODY

template <class Format, int Rows>
struct Decode {
  using pair = typename Format::pair;
  static constexpr int kChunk = kDecodeUnits / Rows;  // units staged at once
  static_assert(kChunk % kDecodeLanesK == 0, "a chunk is a whole number of steps");

  // Activations of units first .. first + count - 1, eight values per thread and turn; rows beyond M repeat the last one.
  static QC_INLINE void stage(const Arguments& args, uint16_t* lds, int first, int count) {
    const int pieces = count * 4;
    for (int index = thread_index(); index < Rows * pieces; index += kDecodeThreads) {
      const int row = index / pieces, piece = index - row * pieces;
      const int source_row = row < args.m ? row : args.m - 1;
      const uint16_t* source = args.a + (size_t)source_row * (size_t)args.k;
      const int k = first * kUnit + piece * 8;
      bits8_t values;
      if (args.perm == nullptr) {
        values = load<bits8_t>(source + k);
      } else {
        const int4_t low = load<int4_t>(args.perm + k), high = load<int4_t>(args.perm + k + 4);
        QC_UNROLL
        for (int i = 0; i < 4; ++i) values[i] = load<uint16_t>(source + within(low[i], args.k));
        QC_UNROLL
        for (int i = 0; i < 4; ++i) values[4 + i] = load<uint16_t>(source + within(high[i], args.k));
      }
      store(lds + (row * kChunk + (piece >> 2)) * kUnitStride + (piece & 3) * 8, values);
    }
  }

  // sums[row][c] += scale[c] * sum over the unit of a (q - z)
  static QC_INLINE void add_unit(const UnitWords& unit, const WeightReader& reader, uint32_t zero_offset, const uint16_t* lds,
                                 float sums[Rows][4]) {
    float part[Rows][4] = {};
    float folded[Rows] = {};
    typename Format::Zero zeros[4];
    QC_UNROLL
    for (int c = 0; c < 4; ++c) zeros[c] = Format::zero(reader.stored_zero(unit, c) + zero_offset);
    QC_UNROLL
    for (int row_of_words = 0; row_of_words < 4; ++row_of_words) {
      pair a[Rows][4];
      QC_UNROLL
      for (int row = 0; row < Rows; ++row) {
        const words4_t words = load<words4_t>(lds + row * kChunk * kUnitStride + row_of_words * 8);
        QC_UNROLL
        for (int i = 0; i < 4; ++i) a[row][i] = bits<pair>((uint32_t)words[i]);
        if constexpr (Format::folds_zero) {
          QC_UNROLL
          for (int i = 0; i < 4; ++i) folded[row] = Format::add_pair(a[row][i], folded[row]);
        }
      }
      QC_UNROLL
      for (int c = 0; c < 4; ++c) {
        pair weights[4];
        Format::expand(unit.rows[row_of_words][c], zeros[c], weights);
        QC_UNROLL
        for (int row = 0; row < Rows; ++row) {
          QC_UNROLL
          for (int i = 0; i < 4; ++i) part[row][c] = dot2(weights[i], a[row][i], part[row][c]);
        }
      }
    }
    QC_UNROLL
    for (int c = 0; c < 4; ++c) {
      const float scale = Format::widen(unit.group.scales[c]);
      QC_UNROLL
      for (int row = 0; row < Rows; ++row) {
        float sum = part[row][c];
        if constexpr (Format::folds_zero) sum -= zeros[c].folded * folded[row];
        sums[row][c] += scale * sum;
      }
    }
  }

  // Sums the 32 threads along K in a fixed order and writes 32 columns of every row.
  static QC_INLINE void finish(const Arguments& args, float* lds, float sums[Rows][4]) {
    const int thread = thread_index(), lane = thread & 31, wave = thread >> 5;
    lds_barrier();  // all reads of the activations are done
    QC_UNROLL
    for (int row = 0; row < Rows; ++row) {
      float4_t total;
      QC_UNROLL
      for (int c = 0; c < 4; ++c) {
        float sum = sums[row][c];
        sum += shuffle_xor<8>(sum);
        sum += shuffle_xor<16>(sum);
        total[c] = sum;
      }
      if (lane < kDecodeLanesN) store(lds + (wave * Rows + row) * kDecodeColumns + lane * 4, total);
    }
    lds_barrier();
    const int row = thread / kDecodeColumns, column = block_x() * kDecodeColumns + thread % kDecodeColumns;
    if (row >= Rows || row >= args.m || column >= args.n) return;
    float sum = 0.0f;
    for (int w = 0; w < kDecodeThreads / 32; ++w)
      sum += load<float>(lds + (w * Rows + row) * kDecodeColumns + thread % kDecodeColumns);
    const size_t at = (size_t)row * (size_t)args.n + (size_t)column;
    if (args.splits == 1) {
      store(args.out + at, Format::narrow(sum));
    } else {
      store(args.partial + (size_t)block_z() * (size_t)args.m * (size_t)args.n + at, sum);
    }
  }

  static QC_INLINE void run(const Arguments& args, uint16_t* lds) {
    const int lane_n = thread_index() % kDecodeLanesN, lane_k = thread_index() / kDecodeLanesN;
    const int wanted = block_x() * kDecodeColumns + lane_n * 4;
    const int column = wanted < args.n ? wanted : args.n - 4;  // a thread beyond N reads what exists and writes nothing
    const WeightReader reader(args, column);
    const int units = args.k / kUnit;
    const int first = units * block_z() / args.splits;  // below 2^15 * 8
    const int last = units * (block_z() + 1) / args.splits;
    const int steps = (last - first + kDecodeLanesK - 1) / kDecodeLanesK;
    float sums[Rows][4] = {};
    int unit = first + lane_k;
    UnitWords words = reader.read(unit < last ? unit : last - 1);
    for (int step = 0; step < steps; ++step, unit += kDecodeLanesK) {
      const int in_chunk = step % (kChunk / kDecodeLanesK);
      if (in_chunk == 0) {
        const int start = first + step * kDecodeLanesK;
        if (step != 0) lds_barrier();
        stage(args, lds, start, last - start < kChunk ? last - start : kChunk);
        lds_barrier();
      }
      UnitWords following = words;
      if (step + 1 < steps) {
        const int next = unit + kDecodeLanesK;
        following = reader.read(next < last ? next : last - 1);
      }
      if (unit < last) {
        const uint16_t* activations = lds + (in_chunk * kDecodeLanesK + lane_k) * kUnitStride;
        add_unit(words, reader, (uint32_t)args.zero_offset, activations, sums);
      }
      words = following;
    }
    finish(args, reinterpret_cast<float*>(lds), sums);
  }
};

#endif

}  // namespace qcompile_rdna3
