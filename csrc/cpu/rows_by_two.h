// Instructions of 64-bit Arm that multiply two rows with two outputs, SMMLA and BFMMLA: from [2][k] of x and [2][k] of a weight to
// four sums, [row][output]. A pair of rows times a part of a block has two registers of sums, as two rows have elsewhere; an odd last
// row stands twice in its pair.
#pragma once

#include <arm_neon.h>

#include "cpu/vectors.h"

namespace qcompile {
namespace {

static_assert(kWidth == 4, "a vector of Advanced SIMD");

template <int R, class Vector>
struct RowsByTwo {
  static constexpr int kPairs = (R + 1) / 2;
  Vector left[kPairs][kParts] = {}, right[kPairs][kParts] = {};  // outputs 0, 1 and 2, 3 of a part

  // One row after the other, one lane for each output.
  template <class Result>
  inline __attribute__((always_inline)) void rows(Result (&sums)[R][kParts]) const {
    QCOMPILE_UNROLL for (int r = 0; r < R; ++r)
      QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
        const int64x2_t a = same_bits<int64x2_t>(left[r / 2][part]), b = same_bits<int64x2_t>(right[r / 2][part]);
        sums[r][part] = same_bits<Result>(r % 2 == 0 ? vzip1q_s64(a, b) : vzip2q_s64(a, b));
      }
  }
};

}  // namespace
}  // namespace qcompile
