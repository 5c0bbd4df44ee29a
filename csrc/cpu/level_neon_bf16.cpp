// Level "neon_bf16": products of pairs of bfloat16.
#define QCOMPILE_WIDTH 4
#include "cpu/neon_bf16_body.h"
#include "cpu/probe_body.h"

namespace qcompile {
namespace {

constexpr LinearKernel kInt4 = Panels<NeonBf16Body<4>>::kernel("int4_neon_bf16");
constexpr LinearKernel kInt8A16 = Panels<NeonBf16Body<8>>::kernel("int8_a16_neon_bf16");
constexpr LinearKernel kBook4 = Panels<NeonBf16Body<4, Values::book>>::kernel("book4_neon_bf16");
constexpr LinearKernel kE4m3 = Panels<NeonBf16Body<8, Values::e4m3>>::kernel("e4m3_neon_bf16");
constexpr LinearKernel kE5m2 = Panels<NeonBf16Body<8, Values::e5m2>>::kernel("e5m2_neon_bf16");

double probe_pairs(int64_t rounds) {
  return probe_multiply<Floats>(rounds, 4.0 * kWidth, [](const Floats& sum, const Floats& a, const Floats& b) __attribute__((always_inline)) {
    return same_bits<Floats>(vbfdotq_f32(same_bits<float32x4_t>(sum), same_bits<bfloat16x8_t>(a), same_bits<bfloat16x8_t>(b)));
  });
}

}  // namespace

const LevelKernels kNeonBf16Kernels = {&kInt4, &kInt8A16, nullptr, nullptr, &kBook4, &kE4m3, &kE5m2, probe_pairs, nullptr, nullptr};

}  // namespace qcompile
