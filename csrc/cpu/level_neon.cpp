// Level "neon": 32 registers of 4 floats. 4 x 4 sums, four decoded vectors and the numbers of x fit.
#define QCOMPILE_WIDTH 4
#include "cpu/float_body.h"
#include "cpu/probe_body.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 4;
constexpr LinearKernel kInt4 = Panels<FloatBody<4, kRows>>::kernel("int4_neon");
constexpr LinearKernel kInt8A16 = Panels<FloatBody<8, kRows>>::kernel("int8_a16_neon");
constexpr LinearKernel kInt8 = Panels<FloatBody<8, kRows, true>>::kernel("int8_neon");
constexpr LinearKernel kInt4A8 = Panels<FloatBody<4, kRows, true>>::kernel("int4_a8_neon");
constexpr LinearKernel kBook4 = Panels<FloatBody<4, kRows, false, Values::book>>::kernel("book4_neon");
constexpr LinearKernel kE4m3 = Panels<FloatBody<8, kRows, false, Values::e4m3>>::kernel("e4m3_neon");
constexpr LinearKernel kE5m2 = Panels<FloatBody<8, kRows, false, Values::e5m2>>::kernel("e5m2_neon");

}  // namespace

const LevelKernels kNeonKernels = {&kInt4, &kInt8A16, &kInt8, &kInt4A8, &kBook4, &kE4m3, &kE5m2, probe_floats, probe_floats, probe_read};

}  // namespace qcompile
