// Level "avx512_bf16": products of pairs of bfloat16.
#define QCOMPILE_WIDTH 16
#include "cpu/bf16_body.h"
#include "cpu/probe_body.h"

namespace qcompile {
namespace {

constexpr LinearKernel kInt4 = Panels<Bf16Body<4>>::kernel("int4_avx512_bf16");
constexpr LinearKernel kInt8A16 = Panels<Bf16Body<8>>::kernel("int8_a16_avx512_bf16");
constexpr LinearKernel kBook4 = Panels<Bf16Body<4, Values::book>>::kernel("book4_avx512_bf16");

double probe_pairs(int64_t rounds) {
  return probe_multiply<Floats>(rounds, 4.0 * kWidth, [](const Floats& sum, const Floats& a, const Floats& b) __attribute__((always_inline)) {
    return same_bits<Floats>(_mm512_dpbf16_ps(same_bits<__m512>(sum), same_bits<__m512bh>(a), same_bits<__m512bh>(b)));
  });
}

}  // namespace

const LevelKernels kAvx512Bf16Kernels = {&kInt4, &kInt8A16, nullptr, nullptr, &kBook4, nullptr, nullptr, probe_pairs, nullptr, nullptr};

}  // namespace qcompile
