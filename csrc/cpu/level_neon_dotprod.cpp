// Level "neon_dotprod": products of four bytes by SDOT. 4 x 5 sums of 8-bit weights fit, beside the two vectors of
// 4-bit ones 4 x 4. Everything else comes from level "neon".
#define QCOMPILE_WIDTH 4
#include "cpu/dots_arm.h"
#include "cpu/int4_a8_body.h"
#include "cpu/int8_body.h"
#include "cpu/probe_body.h"

namespace qcompile {
namespace {

constexpr LinearKernel kInt8 = Panels<Int8Body<SignedDot, 5>>::kernel("int8_neon_dotprod");
constexpr LinearKernel kInt4A8 = Panels<Int4A8Body<NibbleDot, 4>>::kernel("int4_a8_neon_dotprod");

double probe_bytes(int64_t rounds) {
  return probe_multiply<Ints>(rounds, 8.0 * kWidth, [](const Ints& sum, const Ints& a, const Ints& b) __attribute__((always_inline)) {
    return multiply_add(sum, same_bits<int8x16_t>(a), same_bits<int8x16_t>(b));
  });
}

}  // namespace

const LevelKernels kNeonDotprodKernels = {nullptr, nullptr, &kInt8, &kInt4A8, nullptr, nullptr, nullptr, nullptr, probe_bytes, nullptr};

}  // namespace qcompile
