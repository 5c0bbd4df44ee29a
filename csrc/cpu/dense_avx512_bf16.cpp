// Dense products of bfloat16 with VDPBF16PS, which adds two exact products to a float32 lane (Intel SDM volume 2).
#define QCOMPILE_WIDTH 16
#include <immintrin.h>

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

  template <int Rows>
  static void dots(const Dense& d, const uint8_t* weight, const uint8_t* x, float* out) {
    constexpr int kParts = parts_of(Rows);
    const int64_t row = row_bytes(d), bytes = d.k * 2;
    __m512 sum[Rows][kParts];
    QCOMPILE_UNROLL
    for (int r = 0; r < Rows; ++r)
      QCOMPILE_UNROLL
      for (int part = 0; part < kParts; ++part) sum[r][part] = _mm512_setzero_ps();
    int64_t at = 0;
    for (; at + kParts * 64 <= bytes; at += kParts * 64) {
      QCOMPILE_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const __m512bh w = (__m512bh)_mm512_loadu_si512(weight + at + part * 64);
        if constexpr (Rows > 1) __builtin_prefetch(weight + at + part * 64 + kDenseAhead);
        QCOMPILE_UNROLL
        for (int r = 0; r < Rows; ++r)
          sum[r][part] = _mm512_dpbf16_ps(sum[r][part], w, (__m512bh)_mm512_load_si512(x + r * row + at + part * 64));
      }
    }
    for (; at < bytes; at += 64) {
      const __mmask32 columns = bytes - at >= 64 ? ~__mmask32{0} : (__mmask32{1} << ((bytes - at) / 2)) - 1;
      const __m512bh w = (__m512bh)_mm512_maskz_loadu_epi16(columns, weight + at);
      QCOMPILE_UNROLL
      for (int r = 0; r < Rows; ++r) sum[r][0] = _mm512_dpbf16_ps(sum[r][0], w, (__m512bh)_mm512_load_si512(x + r * row + at));
    }
    QCOMPILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      QCOMPILE_UNROLL
      for (int part = 1; part < kParts; ++part) sum[r][0] = _mm512_add_ps(sum[r][0], sum[r][part]);
      out[r] = _mm512_reduce_add_ps(sum[r][0]);
    }
  }
};

using Run = DenseRun<DensePairBody>;

}  // namespace

extern const DenseKernel kDenseAvx512Bf16;
const DenseKernel kDenseAvx512Bf16 = {"avx512_bf16", Run::prepared_bytes, Run::prepare, Run::run};

}  // namespace qcompile
