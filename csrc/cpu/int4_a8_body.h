// 4-bit weights times x rounded to 8 bit, symmetric, one scale for each row or for each row and group.
//
//   sum_k (u - z) q sx = sx sum_k u q - z (sx sum_k q)          within a group
//
// A NibbleDot multiplies unsigned bytes of 0..15 with signed bytes, four values of k at a time: Weights and decode(line) give
// bytes of k = (0 4 1 5) and (2 6 3 7), add(sum, weights, x0, x1) takes the x of both in that order.
#pragma once

#include "cpu/quantize.h"

namespace qcompile {
namespace {

template <class Dot, int64_t kRows>
struct Int4A8Body {
  static constexpr int64_t kMostRows = kRows;
  static constexpr int64_t kLineK = 8;

  static int64_t parts(Dtype) { return 1; }

  // A prepared panel of R rows: [groups][R] sx, [groups][R] sx * sum of q, then [lines][2][R] four codes of x.
  static int64_t row_bytes(const PackedShape& shape) { return shape.groups() * 8 + shape.padded_k(); }

  template <int R>
  static void run_panel(const PanelArgs& args) {
    constexpr int kChains = R * kParts <= 4 ? 2 : 1;
    const PackedWeight& weight = *args.weight;
    const int64_t groups = weight.shape.groups(), group_lines = weight.shape.group_lines();
    const uint8_t* line = weight.codes + args.begin * weight.shape.lines() * kLineBytes;
    for (int64_t block = args.begin; block < args.end; ++block) {
      Floats total[R][kParts] = {};
      const uint8_t* x = args.panel + groups * 8 * R;
      for (int64_t g = 0; g < groups; ++g) {
        Ints sum[kChains][R][kParts];
        for (int c = 0; c < kChains; ++c)
          QCOMPILE_UNROLL for (int r = 0; r < R; ++r)
            QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) sum[c][r][part] = Ints{};
        const auto add_line = [&](int chain) __attribute__((always_inline)) {
          fetch_ahead<(R > 1) ? Fetch::twice : kParts == 1 ? Fetch::alone : Fetch::once>(line);
          QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
            const typename Dot::Weights w = Dot::decode(line + part * kWidth * 4);
            QCOMPILE_UNROLL for (int r = 0; r < R; ++r) sum[chain][r][part] = Dot::add(sum[chain][r][part], w, x + r * 4, x + (R + r) * 4);
          }
          line += kLineBytes;
          x += R * kLineK;
        };
        int64_t l = 0;
        for (; l + kChains <= group_lines; l += kChains) {
          add_line(0);
          if constexpr (kChains > 1) add_line(1);
        }
        for (; l < group_lines; ++l) add_line(0);
        for (int c = 1; c < kChains; ++c)
          QCOMPILE_UNROLL for (int r = 0; r < R; ++r)
            QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) sum[0][r][part] += sum[c][r][part];
        add_group<R>(args, block, g, sum[0], total);
      }
      for (int r = 0; r < R; ++r) store_row(args, r, block * kBlock, total[r]);
    }
  }

  // The products of one group and block, with its scale.
  template <int R>
  static inline __attribute__((always_inline)) void add_group(const PanelArgs& args, int64_t block, int64_t g, const Ints (&sum)[R][kParts],
                                                              Floats (&total)[R][kParts]) {
    const PackedWeight& weight = *args.weight;
    const int64_t groups = weight.shape.groups();
    const float* const scales_x = reinterpret_cast<const float*>(args.panel);
    const float* const sums_x = scales_x + groups * R;
    QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
      const int64_t meta = (block * groups + g) * kBlock + part * kWidth;
      const Floats scale = load_scales(weight, meta), zero = load_zeros(weight, meta, 8);
      QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
        const Floats product = to_floats(sum[r][part]) * all(scales_x[g * R + r]) - zero * all(sums_x[g * R + r]);
        total[r][part] += scale * product;
      }
    }
  }

  static void prepare_panel(const PackedWeight& weight, const LinearInput& input, uint8_t* out, int64_t first, int64_t count) {
    const PackedShape& shape = weight.shape;
    const int64_t groups = shape.groups(), group_k = shape.group_k();
    float* const scales = reinterpret_cast<float*>(out);
    float* const sums = scales + groups * count;
    uint8_t* const data = out + groups * 8 * count;
    float values[kPiece];
    int8_t codes[kPiece];
    RowScale scale = {1.0f, 0.0f};
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        if (g == 0 || input.activation.rounding == Rounding::group) scale = find_scale(shape, input, first + row, g);
        int32_t sum = 0;
        for (int64_t at = 0; at < group_k; at += kPiece) {
          const int64_t padded = smaller(kPiece, group_k - at);
          read_group(shape, input, first + row, g, at, padded, values);
          quantize(input.activation, scale, values, padded, codes);
          for (int64_t i = 0; i < padded; ++i) sum += codes[i];
          uint8_t* to = data + (g * group_k + at) * count + row * 4;
          for (int64_t i = 0; i < padded; i += kLineK, to += count * kLineK) {
            const int8_t first_four[4] = {codes[i], codes[i + 4], codes[i + 1], codes[i + 5]};
            const int8_t last_four[4] = {codes[i + 2], codes[i + 6], codes[i + 3], codes[i + 7]};
            std::memcpy(to, first_four, 4);
            std::memcpy(to + count * 4, last_four, 4);
          }
        }
        scales[g * count + row] = scale.scale;
        sums[g * count + row] = scale.scale * static_cast<float>(sum);
      }
    }
  }
};

}  // namespace
}  // namespace qcompile
