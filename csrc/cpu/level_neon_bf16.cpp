// Level "neon_bf16": products of bfloat16 by BFMMLA. 2 x 8 registers of sums for four rows fit beside the bytes of a book, and
// 3 x 8 where there is none.
#define QCOMPILE_WIDTH 4
#include "cpu/bf16_matrix_body.h"
#include "cpu/probe_body.h"

namespace qcompile {
namespace {

constexpr LinearKernel kInt4 = Panels<Bf16MatrixBody<4, 4>>::kernel("int4_neon_bf16");
constexpr LinearKernel kInt8A16 = Panels<Bf16MatrixBody<8, 6>>::kernel("int8_a16_neon_bf16");
constexpr LinearKernel kBook4 = Panels<Bf16MatrixBody<4, 4, Values::book>>::kernel("book4_neon_bf16");
constexpr LinearKernel kE4m3 = Panels<Bf16MatrixBody<8, 4, Values::e4m3>>::kernel("e4m3_neon_bf16");
constexpr LinearKernel kE5m2 = Panels<Bf16MatrixBody<8, 4, Values::e5m2>>::kernel("e5m2_neon_bf16");

double probe_products(int64_t rounds) {
  return probe_multiply<Floats>(rounds, 8.0 * kWidth, [](const Floats& sum, const Floats& a, const Floats& b) __attribute__((always_inline)) {
    return same_bits<Floats>(vbfmmlaq_f32(same_bits<float32x4_t>(sum), same_bits<bfloat16x8_t>(a), same_bits<bfloat16x8_t>(b)));
  });
}

}  // namespace

const LevelKernels kNeonBf16Kernels = {&kInt4, &kInt8A16, nullptr, nullptr, &kBook4, &kE4m3, &kE5m2, probe_products, nullptr, nullptr};

}  // namespace qcompile
