// 8-bit weights times x rounded to 8 bit, in integers until the end of a group of the weight.
//
//   sum_k (q - zx)(w - zw) = sum_k q' w - zx' sum_k w - zw sum_k (q - zx)
//
// A Dot says how 4 values of k of one block are multiplied: kValueBytes for each value of x, Weights and decode(line) for a
// line, add(sum, weights, x) for one row. With one byte, q' = q and zx' = zx; with two, q' = q - zx and zx' = 0. kAdded is what
// decode adds to the weights (128 where they must be unsigned), which leaves again as kAdded sum_k q. Groups of up to 65536
// values cannot overflow: 255 * 128 * 65536 < 2^31.
#pragma once

#include "cpu/quantize.h"

namespace qcompile {
namespace {

template <class Dot, int64_t kRows>
struct Int8Body {
  static constexpr int64_t kMostRows = kRows;
  static constexpr int64_t kLineK = 4;

  static int64_t parts(Dtype) { return 1; }

  // A prepared panel of R rows: [R] scales, [R] zx' (int32), [groups][R] kAdded * sum of q (int32), [groups][R] sums of q - zx,
  // then [lines][R] values of x.
  static int64_t row_bytes(const PackedShape& shape) { return 8 + shape.groups() * 8 + shape.padded_k() * Dot::kValueBytes; }

  template <int R>
  static void run_panel(const PanelArgs& args) {
    // Few rows leave the multipliers waiting for the sum before.
    constexpr int kChains = R * kParts <= 2 ? 4 : R * kParts <= 4 ? 2 : 1;
    const PackedWeight& weight = *args.weight;
    const int64_t groups = weight.shape.groups(), group_lines = weight.shape.group_lines();
    const uint8_t* line = weight.codes + args.begin * weight.shape.lines() * kLineBytes;
    for (int64_t block = args.begin; block < args.end; ++block) {
      Floats total[R][kParts] = {};
      const uint8_t* x = args.panel + (8 + groups * 8) * R;
      for (int64_t g = 0; g < groups; ++g) {
        Ints sum[kChains][R][kParts];
        for (int c = 0; c < kChains; ++c)
          QCOMPILE_UNROLL for (int r = 0; r < R; ++r)
            QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) sum[c][r][part] = Ints{};
        const auto add_line = [&](int chain) __attribute__((always_inline)) {
          fetch_ahead<(R > 4) ? Fetch::twice : kParts == 1 ? Fetch::alone : Fetch::once>(line);
          QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
            const typename Dot::Weights w = Dot::decode(line + part * kWidth * 4);
            QCOMPILE_UNROLL for (int r = 0; r < R; ++r)
              sum[chain][r][part] = Dot::add(sum[chain][r][part], w, x + r * kLineK * Dot::kValueBytes);
          }
          line += kLineBytes;
          x += R * kLineK * Dot::kValueBytes;
        };
        int64_t l = 0;
        for (; l + kChains <= group_lines; l += kChains) {
          add_line(0);
          if constexpr (kChains > 1) add_line(1);
          if constexpr (kChains > 2) add_line(2), add_line(3);
        }
        for (; l < group_lines; ++l) add_line(0);
        for (int c = 1; c < kChains; ++c)
          QCOMPILE_UNROLL for (int r = 0; r < R; ++r)
            QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) sum[0][r][part] += sum[c][r][part];
        add_group<R>(args, block, g, sum[0], total);
      }
      store<R>(args, block, total);
    }
  }

  // The products of one group and block, with its scale.
  template <int R>
  static inline __attribute__((always_inline)) void add_group(const PanelArgs& args, int64_t block, int64_t g, const Ints (&sum)[R][kParts],
                                                              Floats (&total)[R][kParts]) {
    const PackedWeight& weight = *args.weight;
    const int64_t groups = weight.shape.groups();
    const int32_t* const row_zero = reinterpret_cast<const int32_t*>(args.panel + R * 4);
    [[maybe_unused]] const int32_t* const added = row_zero + R;
    const float* const sums = reinterpret_cast<const float*>(args.panel) + (2 + groups) * R;
    QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
      const int64_t meta = (block * groups + g) * kBlock + part * kWidth;
      const Floats scale = load_scales(weight, meta);
      QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
        Ints products = sum[r][part];
        if constexpr (Dot::kAdded != 0) products -= all_ints(added[g * R + r]);
        if constexpr (Dot::kValueBytes == 1) {
          if (row_zero[r] != 0) products -= load<Ints>(weight.sums + meta * 4) * row_zero[r];
        }
        Floats product = to_floats(products);
        if (weight.zeros != nullptr) product -= load_zeros(weight, meta, 0) * all(sums[g * R + r]);
        total[r][part] += scale * product;
      }
    }
  }

  template <int R>
  static inline __attribute__((always_inline)) void store(const PanelArgs& args, int64_t block, Floats (&total)[R][kParts]) {
    const float* const row_scale = reinterpret_cast<const float*>(args.panel);
    for (int r = 0; r < R; ++r) {
      for (int part = 0; part < kParts; ++part) total[r][part] *= all(row_scale[r]);
      store_row(args, r, block * kBlock, total[r]);
    }
  }

  static void prepare_panel(const PackedWeight& weight, const LinearInput& input, uint8_t* out, int64_t first, int64_t count) {
    const PackedShape& shape = weight.shape;
    const int64_t groups = shape.groups(), group_k = shape.group_k();
    float* const scales = reinterpret_cast<float*>(out);
    int32_t* const zeros = reinterpret_cast<int32_t*>(out + count * 4);
    int32_t* const added = zeros + count;
    float* const sums = scales + (2 + groups) * count;
    uint8_t* const data = out + (8 + groups * 8) * count;
    float values[kPiece];
    int8_t codes[kPiece];
    for (int64_t row = 0; row < count; ++row) {
      const RowScale scale = find_scale(shape, input, first + row, 0);
      const int32_t zero = static_cast<int32_t>(scale.zero);
      scales[row] = scale.scale;
      zeros[row] = zero;
      for (int64_t g = 0; g < groups; ++g) {
        int32_t sum = 0;
        for (int64_t at = 0; at < group_k; at += kPiece) {
          const int64_t padded = smaller(kPiece, group_k - at);
          read_group(shape, input, first + row, g, at, padded, values);
          quantize(input.activation, scale, values, padded, codes);
          // Beyond the end of the group x is 0, whose code is the zero point: it adds nothing here and meets a weight of 0.
          for (int64_t i = 0; i < padded; ++i) sum += codes[i];
          uint8_t* to = data + ((g * group_k + at) * count + row * kLineK) * Dot::kValueBytes;
          for (int64_t i = 0; i < padded; i += kLineK, to += count * kLineK * Dot::kValueBytes)
            Dot::write(codes + i, zero, to);
        }
        added[g * count + row] = Dot::kAdded * sum;
        sums[g * count + row] = static_cast<float>(sum - zero * static_cast<int32_t>(group_k));
      }
    }
  }
};

}  // namespace
}  // namespace qcompile
