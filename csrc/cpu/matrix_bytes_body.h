// The two families of bytes with SMMLA: rows of x two by two, with the outputs of a part two by two, over eight values of k. Prepared
// panels and what becomes of the sums are those of the bodies that multiply by SDOT.
#pragma once

#include "cpu/dots_arm.h"
#include "cpu/int4_a8_body.h"
#include "cpu/int8_body.h"
#include "cpu/rows_by_two.h"

namespace qcompile {
namespace {

// Four values and four more of row 2p and of the one after it, or twice those of an odd last row.
template <int R>
inline int8x16_t two_rows(int p, const uint8_t* first, const uint8_t* second) {
  if (2 * p + 1 == R) return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(repeat(first + 8 * p)), vreinterpretq_s32_s8(repeat(second + 8 * p))));
  const int32x2_t a = load<int32x2_t>(first + 8 * p), b = load<int32x2_t>(second + 8 * p);
  return vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(a, b), vzip2_s32(a, b)));
}

// One part of a block: `low` and `high` hold four values of k for each output, the ones that x has first and second.
template <int R>
inline __attribute__((always_inline)) void add_part(RowsByTwo<R, int32x4_t>& sum, int part, const int8x16_t& low, const int8x16_t& high,
                                                    const int8x16_t (&x)[(R + 1) / 2]) {
  const int32x4_t a = vreinterpretq_s32_s8(low), b = vreinterpretq_s32_s8(high);
  const int8x16_t left = vreinterpretq_s8_s32(vzip1q_s32(a, b)), right = vreinterpretq_s8_s32(vzip2q_s32(a, b));
  QCOMPILE_UNROLL for (int p = 0; p < (R + 1) / 2; ++p) {
    sum.left[p][part] = vmmlaq_s32(sum.left[p][part], x[p], left);
    sum.right[p][part] = vmmlaq_s32(sum.right[p][part], x[p], right);
  }
}

template <int64_t kRows>
struct Int8MatrixBody : Int8Body<SignedDot, kRows> {
  using Base = Int8Body<SignedDot, kRows>;

  template <int R>
  static void run_panel(const PanelArgs& args) {
    const PackedWeight& weight = *args.weight;
    const int64_t groups = weight.shape.groups(), group_lines = weight.shape.group_lines();
    const uint8_t* line = weight.codes + args.begin * weight.shape.lines() * kLineBytes;
    for (int64_t block = args.begin; block < args.end; ++block) {
      Floats total[R][kParts] = {};
      const uint8_t* x = args.panel + (8 + groups * 8) * R;
      for (int64_t g = 0; g < groups; ++g) {
        RowsByTwo<R, int32x4_t> sum;
        const auto add_lines = [&](bool two) __attribute__((always_inline)) {
          fetch_ahead<Fetch::once>(line);
          if (two) fetch_ahead<Fetch::once>(line + kLineBytes);
          int8x16_t rows[(R + 1) / 2];
          QCOMPILE_UNROLL for (int p = 0; p < (R + 1) / 2; ++p) rows[p] = two_rows<R>(p, x, two ? x + R * 4 : x);
          QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
            const int8x16_t low = load<int8x16_t>(line + part * 16);
            add_part<R>(sum, part, low, two ? load<int8x16_t>(line + kLineBytes + part * 16) : vdupq_n_s8(0), rows);
          }
          line += two ? 2 * kLineBytes : kLineBytes;
          x += two ? R * 8 : R * 4;
        };
        int64_t l = 0;
        for (; l + 2 <= group_lines; l += 2) add_lines(true);
        if (l < group_lines) add_lines(false);
        Ints products[R][kParts];
        sum.rows(products);
        Base::template add_group<R>(args, block, g, products, total);
      }
      Base::template store<R>(args, block, total);
    }
  }
};

template <int64_t kRows>
struct Int4A8MatrixBody : Int4A8Body<NibbleDot, kRows> {
  using Base = Int4A8Body<NibbleDot, kRows>;

  template <int R>
  static void run_panel(const PanelArgs& args) {
    const PackedWeight& weight = *args.weight;
    const int64_t groups = weight.shape.groups(), group_lines = weight.shape.group_lines();
    const uint8_t* line = weight.codes + args.begin * weight.shape.lines() * kLineBytes;
    for (int64_t block = args.begin; block < args.end; ++block) {
      Floats total[R][kParts] = {};
      const uint8_t* x = args.panel + groups * 8 * R;
      for (int64_t g = 0; g < groups; ++g) {
        RowsByTwo<R, int32x4_t> sum;
        for (int64_t l = 0; l < group_lines; ++l, line += kLineBytes, x += R * 8) {
          fetch_ahead<Fetch::once>(line);
          int8x16_t rows[(R + 1) / 2];
          QCOMPILE_UNROLL for (int p = 0; p < (R + 1) / 2; ++p) rows[p] = two_rows<R>(p, x, x + R * 4);
          QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
            const Nibbles w = split_nibbles(line + part * 16);
            add_part<R>(sum, part, w.first, w.second, rows);
          }
        }
        Ints products[R][kParts];
        sum.rows(products);
        Base::template add_group<R>(args, block, g, products, total);
      }
      for (int r = 0; r < R; ++r) store_row(args, r, block * kBlock, total[r]);
    }
  }
};

}  // namespace
}  // namespace qcompile
