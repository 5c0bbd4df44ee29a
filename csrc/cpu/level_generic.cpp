// Level "generic": plain C++ in vectors of 4 floats, which SSE2 and NEON both have and the compiler emulates elsewhere.
#define QCOMPILE_WIDTH 4
#include "cpu/float_body.h"
#include "cpu/probe_body.h"
#include "cpu/unpack_lines.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 2;
constexpr int64_t kManyAtOnce = 3;
constexpr LinearKernel kInt4Many = Strips<UnpackLines<4>, kManyAtOnce>::kernel("int4_many_generic");
constexpr LinearKernel kInt4 = Panels<FloatBody<4, kRows>>::kernel("int4_generic", &kInt4Many, 24);
constexpr LinearKernel kInt8A16Many = Strips<UnpackLines<8>, kManyAtOnce>::kernel("int8_a16_many_generic");
constexpr LinearKernel kInt8A16 = Panels<FloatBody<8, kRows>>::kernel("int8_a16_generic", &kInt8A16Many, 24);
constexpr LinearKernel kInt8 = Panels<FloatBody<8, kRows, true>>::kernel("int8_generic");
constexpr LinearKernel kInt4A8 = Panels<FloatBody<4, kRows, true>>::kernel("int4_a8_generic");
constexpr LinearKernel kBook4Many = Strips<UnpackLines<4, Values::book>, kManyAtOnce>::kernel("book4_many_generic");
constexpr LinearKernel kBook4 = Panels<FloatBody<4, kRows, false, Values::book>>::kernel("book4_generic", &kBook4Many, 10);
constexpr LinearKernel kE4m3Many = Strips<UnpackLines<8, Values::e4m3>, kManyAtOnce>::kernel("e4m3_many_generic");
constexpr LinearKernel kE4m3 = Panels<FloatBody<8, kRows, false, Values::e4m3>>::kernel("e4m3_generic", &kE4m3Many, 10);
constexpr LinearKernel kE5m2Many = Strips<UnpackLines<8, Values::e5m2>, kManyAtOnce>::kernel("e5m2_many_generic");
constexpr LinearKernel kE5m2 = Panels<FloatBody<8, kRows, false, Values::e5m2>>::kernel("e5m2_generic", &kE5m2Many, 10);

}  // namespace

const LevelKernels kGenericKernels = {&kInt4, &kInt8A16, &kInt8, &kInt4A8, &kBook4, &kE4m3, &kE5m2,
                                     probe_floats, probe_floats, probe_read};

}  // namespace qcompile
