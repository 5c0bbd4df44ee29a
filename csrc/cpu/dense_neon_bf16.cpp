// Dense products of bfloat16 with BFDOT, which adds two products to a float32 lane and rounds to odd (see bf16_matrix_body.h).
#define QCOMPILE_WIDTH 4
#include <arm_neon.h>

#include "cpu/dense_body.h"

namespace qcompile {
namespace {

struct DensePairBody {
  // A line more, so that rows of a length that is a power of two do not compete for the same places of the cache.
  static int64_t row_bytes(const Dense& d) { return rounded_up(d.k, 32) * 2 + 64; }

  static void prepare_row(const Dense& d, const uint8_t* from, uint8_t* out) {
    std::memset(out + row_bytes(d) - 128, 0, 128);
    std::memcpy(out, from, static_cast<size_t>(d.k) * 2);
  }

  static inline float32x4_t multiply_add(float32x4_t sum, const bfloat16x8_t& w, const uint8_t* x) {
    return vbfdotq_f32(sum, w, load<bfloat16x8_t>(x));
  }

  template <int Rows>
  static void dots(const Dense& d, const uint8_t* weight, const uint8_t* x, float* out) {
    constexpr int kSums = 2 * parts_of(Rows);
    const int64_t row = row_bytes(d), bytes = d.k * 2;
    float32x4_t sum[Rows][kSums];
    QCOMPILE_UNROLL
    for (int r = 0; r < Rows; ++r)
      QCOMPILE_UNROLL
      for (int i = 0; i < kSums; ++i) sum[r][i] = vdupq_n_f32(0.0f);
    int64_t at = 0;
    for (; at + kSums * 16 <= bytes; at += kSums * 16) {
      if constexpr (Rows > 1) __builtin_prefetch(weight + at + kDenseAhead);
      QCOMPILE_UNROLL
      for (int i = 0; i < kSums; ++i) {
        const bfloat16x8_t w = load<bfloat16x8_t>(weight + at + i * 16);
        QCOMPILE_UNROLL
        for (int r = 0; r < Rows; ++r) sum[r][i] = multiply_add(sum[r][i], w, x + r * row + at + i * 16);
      }
    }
    for (; at < bytes; at += 16) {
      uint16_t rest[8] = {};
      std::memcpy(rest, weight + at, static_cast<size_t>(smaller(16, bytes - at)));
      const bfloat16x8_t w = load<bfloat16x8_t>(rest);
      QCOMPILE_UNROLL
      for (int r = 0; r < Rows; ++r) sum[r][0] = multiply_add(sum[r][0], w, x + r * row + at);
    }
    QCOMPILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      QCOMPILE_UNROLL
      for (int i = 1; i < kSums; ++i) sum[r][0] = vaddq_f32(sum[r][0], sum[r][i]);
      out[r] = vaddvq_f32(sum[r][0]);
    }
  }
};

using Run = DenseRun<DensePairBody>;

}  // namespace

extern const DenseKernel kDenseNeonBf16;
const DenseKernel kDenseNeonBf16 = {"neon_bf16", Run::prepared_bytes, Run::prepare, Run::run};

}  // namespace qcompile
