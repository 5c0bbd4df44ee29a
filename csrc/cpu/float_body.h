// Weights of 4 and 8 bits (integers, codes of a code book, numbers in 8 bits) times float32 numbers: one body for every ISA. How a line
// of codes is read, and with what x is multiplied beforehand, is in codes.h.
//
// With kRounded, x is rounded to 8 bit first and multiplied as the float32 numbers that the codes stand for.
// Sums are kept for at most 128 values of k before they are scaled and added to the total, which bounds the rounding error.
#pragma once

#include "cpu/codes.h"
#include "cpu/quantize.h"

namespace qcompile {
namespace {

template <int kBits, int64_t kRows, bool kRounded = false, Values kValues = Values::integers>
struct FloatBody {
  using Codes = Decoder<kBits, kValues>;
  using Line = Words[kParts][Codes::kWords];
  static constexpr int64_t kMostRows = kRows;
  static constexpr int kLineK = Codes::kLineK;
  static constexpr int64_t kRunLines = 128 / kLineK;  // lines summed before scaling

  static int64_t parts(Dtype) { return 1; }

  // Runs of lines that are summed before scaling, in a group.
  static int64_t group_runs(const PackedShape& shape) { return (shape.group_lines() + kRunLines - 1) / kRunLines; }

  // A prepared panel of R rows: [groups][runs][R] sums of x, then [padded k][R] scaled x.
  static int64_t row_bytes(const PackedShape& shape) { return (shape.padded_k() + shape.groups() * group_runs(shape)) * 4; }

  template <int R, int K>
  static inline void add_products(const Line& line, const Codes& codes, const float* x, Floats (&sum)[R][kParts]) {
    Floats w[kParts];
    QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) w[part] = codes.template value<K>(line[part]);
    QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
      const Floats value = all(x[K * R + r]);
      QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) sum[r][part] += w[part] * value;
    }
  }

  // Few rows leave the multipliers waiting for the sum before: k then takes turns with several sums.
  template <int R>
  static constexpr int chains() { return R * kParts <= 2 ? 4 : R * kParts < 8 ? 2 : 1; }

#if defined(__aarch64__)
  // Part by part, with lanes of vectors of x: Arm multiplies by a lane as quickly as by a vector, and few numbers are waiting.
  template <int R, int K, int... Row>
  static inline void add_lanes(const Floats& w, const float32x4_t* x, int part, Floats (&sum)[R][kParts], std::integer_sequence<int, Row...>) {
    ((sum[Row][part] = add_product<(K * R + Row) % kWidth>(sum[Row][part], w, x[(K * R + Row) / kWidth])), ...);
  }

  template <int R, int... K>
  static inline void add_line(const uint8_t* from, const Codes& codes, const float* x, Floats (&sum)[chains<R>()][R][kParts],
                              std::integer_sequence<int, K...>) {
    QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
      const Words word[1] = {Codes::part(from + part * kWidth * 4)};
      float32x4_t values[kLineK * R / kWidth];
      QCOMPILE_UNROLL for (int i = 0; i < kLineK * R / kWidth; ++i) {
        values[i] = vld1q_f32(x + i * kWidth);
        __asm__("" : "+w"(values[i]));  // or else GCC loads lane by lane
      }
      (add_lanes<R, K>(codes.template value<K>(word), values, part, sum[K % chains<R>()], std::make_integer_sequence<int, R>()), ...);
      // GCC would load and decode all parts first, and have no registers left for that.
      if constexpr (R > 1) __asm__ volatile("" : : : "memory");
    }
  }
#else
  template <int R, int... K>
  static inline void add_line(const uint8_t* from, const Codes& codes, const float* x, Floats (&sum)[chains<R>()][R][kParts],
                              std::integer_sequence<int, K...>) {
    Line line;
    codes.line(from, line);
    (add_products<R, K>(line, codes, x, sum[K % chains<R>()]), ...);
  }
#endif

  template <int R>
  static void run_panel(const PanelArgs& args) {
    const PackedWeight& weight = *args.weight;
    const int64_t groups = weight.shape.groups(), group_lines = weight.shape.group_lines(), runs = group_runs(weight.shape);
    const float* const sums = reinterpret_cast<const float*>(args.panel);
    const uint8_t* line = weight.codes + args.begin * weight.shape.lines() * kLineBytes;
    const Codes codes(weight);
    for (int64_t block = args.begin; block < args.end; ++block) {
      Floats total[R][kParts] = {};
      const float* x = sums + groups * runs * R;
      for (int64_t g = 0; g < groups; ++g) {
        Floats scale[kParts], zero[kParts];
        for (int part = 0; part < kParts; ++part) {
          const int64_t meta = (block * groups + g) * kBlock + part * kWidth;
          scale[part] = load_scales(weight, meta);
          zero[part] = load_zeros(weight, meta, kBits == 4 ? 8 : 0);
        }
        for (int64_t run = 0; run < runs; ++run) {
          Floats sum[chains<R>()][R][kParts];
          for (int c = 0; c < chains<R>(); ++c)
            QCOMPILE_UNROLL for (int r = 0; r < R; ++r)
              QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) sum[c][r][part] = Floats{};
          const int64_t count = smaller(kRunLines, group_lines - run * kRunLines);
          for (int64_t l = 0; l < count; ++l, line += kLineBytes, x += kLineK * R) {
            fetch_ahead<Fetch::once>(line);
            add_line<R>(line, codes, x, sum, std::make_integer_sequence<int, kLineK>());
          }
          QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
            [[maybe_unused]] const Floats sum_x = all(sums[(g * runs + run) * R + r]);
            QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
              Floats all_chains = sum[0][r][part];
              for (int c = 1; c < chains<R>(); ++c) all_chains += sum[c][r][part];
              if constexpr (kValues == Values::integers) all_chains -= zero[part] * sum_x;
              total[r][part] += scale[part] * all_chains;
            }
          }
        }
      }
      if (weight.outer != nullptr)
        for (int r = 0; r < R; ++r)
          for (int part = 0; part < kParts; ++part) total[r][part] *= load_outer(weight, block, part);
      for (int r = 0; r < R; ++r) store_row(args, r, block * kBlock, total[r]);
    }
  }

  static void round_values(const Activation& activation, const RowScale& scale, float* values, int64_t count) {
    int8_t codes[kRunLines * kLineK];
    if (count <= 0) return;
    quantize(activation, scale, values, count, codes);
    for (int64_t i = 0; i < count; ++i) values[i] = (static_cast<float>(codes[i]) - scale.zero) * scale.scale;
  }

  static void prepare_panel(const PackedWeight& weight, const LinearInput& input, uint8_t* out, int64_t first, int64_t count) {
    const PackedShape& shape = weight.shape;
    const int64_t groups = shape.groups(), runs = group_runs(shape), group_k = shape.group_k();
    float* const sums = reinterpret_cast<float*>(out);
    float* const scaled = sums + groups * runs * count;
    float places[kLineK];
    for (int i = 0; i < kLineK; ++i) places[i] = Codes::factor(i);
    RowScale scale = {1.0f, 0.0f};
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        if (kRounded && (g == 0 || input.activation.rounding == Rounding::group)) scale = find_scale(shape, input, first + row, g);
        for (int64_t run = 0; run < runs; ++run) {
          const int64_t from = run * kRunLines * kLineK, padded = smaller(kRunLines * kLineK, group_k - from);
          float values[kRunLines * kLineK], sum[kLineK] = {};
          read_group(shape, input, first + row, g, from, padded, values);
          if (kRounded) round_values(input.activation, scale, values, smaller(padded, shape.k - g * shape.group - from));
          float* to = scaled + (g * group_k + from) * count + row;
          for (int64_t i = 0; i < padded; i += kLineK) {
            for (int j = 0; j < kLineK; ++j, to += count) {
              sum[j] += values[i + j];
              *to = values[i + j] * places[j];
            }
          }
          float all_sums = 0.0f;
          for (int j = 0; j < kLineK; j += 2) all_sums += sum[j] + sum[j + 1];
          sums[(g * runs + run) * count + row] = all_sums;
        }
      }
    }
  }
};

}  // namespace
}  // namespace qcompile
