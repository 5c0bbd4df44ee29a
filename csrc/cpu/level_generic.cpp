// Level "generic": plain C++ in vectors of 4 floats, which SSE2 and NEON both have and the compiler emulates elsewhere.
#define QCOMPILE_WIDTH 4
#include "cpu/float_body.h"
#include "cpu/probe_body.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 2;
constexpr LinearKernel kInt4 = Panels<FloatBody<4, kRows>>::kernel("int4_generic");
constexpr LinearKernel kInt8A16 = Panels<FloatBody<8, kRows>>::kernel("int8_a16_generic");
constexpr LinearKernel kInt8 = Panels<FloatBody<8, kRows, true>>::kernel("int8_generic");
constexpr LinearKernel kInt4A8 = Panels<FloatBody<4, kRows, true>>::kernel("int4_a8_generic");
constexpr LinearKernel kBook4 = Panels<FloatBody<4, kRows, false, Values::book>>::kernel("book4_generic");
constexpr LinearKernel kE4m3 = Panels<FloatBody<8, kRows, false, Values::e4m3>>::kernel("e4m3_generic");
constexpr LinearKernel kE5m2 = Panels<FloatBody<8, kRows, false, Values::e5m2>>::kernel("e5m2_generic");

}  // namespace

const LevelKernels kGenericKernels = {&kInt4, &kInt8A16, &kInt8, &kInt4A8, &kBook4, &kE4m3, &kE5m2,
                                     probe_floats, probe_floats, probe_read};

}  // namespace qcompile
