// Level "neon_i8mm": products of bytes by SMMLA. 2 x 8 registers of sums for four rows leave room for what is loaded ahead.
#define QCOMPILE_WIDTH 4
#include "cpu/matrix_bytes_body.h"
#include "cpu/probe_body.h"

namespace qcompile {
namespace {

constexpr LinearKernel kInt8 = Panels<Int8MatrixBody<4>>::kernel("int8_neon_i8mm");
constexpr LinearKernel kInt4A8 = Panels<Int4A8MatrixBody<4>>::kernel("int4_a8_neon_i8mm");

double probe_bytes(int64_t rounds) {
  return probe_multiply<Ints>(rounds, 16.0 * kWidth, [](const Ints& sum, const Ints& a, const Ints& b) __attribute__((always_inline)) {
    return same_bits<Ints>(vmmlaq_s32(same_bits<int32x4_t>(sum), same_bits<int8x16_t>(a), same_bits<int8x16_t>(b)));
  });
}

}  // namespace

const LevelKernels kNeonI8mmKernels = {nullptr, nullptr, &kInt8, &kInt4A8, nullptr, nullptr, nullptr, nullptr, probe_bytes, nullptr};

}  // namespace qcompile
