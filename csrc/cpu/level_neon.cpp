// Level "neon": 32 registers of 4 floats, as every 64-bit Arm processor has them. 4 x 4 sums, a decoded block and a number of x fit.
#define QCOMPILE_WIDTH 4
#include "cpu/dots_arm.h"
#include "cpu/float_body.h"
#include "cpu/int4_a8_body.h"
#include "cpu/int8_body.h"
#include "cpu/probe_body.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 4;
constexpr LinearKernel kInt4 = Panels<FloatBody<4, kRows>>::kernel("int4_neon");
constexpr LinearKernel kInt8A16 = Panels<FloatBody<8, kRows>>::kernel("int8_a16_neon");
constexpr LinearKernel kInt8 = Panels<Int8Body<WidenedDot, kRows>>::kernel("int8_neon");
constexpr LinearKernel kInt4A8 = Panels<Int4A8Body<NibbleWidenedDot, kRows>>::kernel("int4_a8_neon");
constexpr LinearKernel kBook4 = Panels<FloatBody<4, kRows, false, Values::book>>::kernel("book4_neon");
constexpr LinearKernel kE4m3 = Panels<FloatBody<8, kRows, false, Values::e4m3>>::kernel("e4m3_neon");
constexpr LinearKernel kE5m2 = Panels<FloatBody<8, kRows, false, Values::e5m2>>::kernel("e5m2_neon");

// Four 16-bit numbers at a time, which bytes are widened to.
double probe_words(int64_t rounds) {
  return probe_multiply<Ints>(rounds, 2.0 * kWidth, [](const Ints& sum, const Ints& a, const Ints&) __attribute__((always_inline)) {
    const int16x4_t half = vget_low_s16(same_bits<int16x8_t>(a));
    return same_bits<Ints>(vmlal_s16(same_bits<int32x4_t>(sum), half, half));
  });
}

}  // namespace

const LevelKernels kNeonKernels = {&kInt4, &kInt8A16, &kInt8, &kInt4A8, &kBook4, &kE4m3, &kE5m2, probe_floats, probe_words, probe_read};

}  // namespace qcompile
