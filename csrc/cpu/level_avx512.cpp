// Level "avx512": 32 registers of 16 floats; 12 sums and 12 totals of a panel fit.
#define QCOMPILE_WIDTH 16
#include "cpu/float_body.h"
#include "cpu/int4_a8_body.h"
#include "cpu/int8_body.h"
#include "cpu/probe_dots.h"
#include "cpu/unpack_lines.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 12;
constexpr int64_t kManyAtOnce = 12;
constexpr LinearKernel kInt4 = Panels<FloatBody<4, kRows>>::kernel("int4_avx512");
constexpr LinearKernel kInt8A16 = Panels<FloatBody<8, kRows>>::kernel("int8_a16_avx512");
constexpr LinearKernel kInt8 = Panels<Int8Body<WordDot, kRows>>::kernel("int8_avx512");
constexpr LinearKernel kInt4A8 = Panels<Int4A8Body<NibbleMaddDot, kRows>>::kernel("int4_a8_avx512");
constexpr LinearKernel kBook4Many = Strips<UnpackLines<4, Values::book>, kManyAtOnce>::kernel("book4_many_avx512");
constexpr LinearKernel kBook4 = Panels<FloatBody<4, kRows, false, Values::book>>::kernel("book4_avx512", &kBook4Many, 24);
constexpr LinearKernel kE4m3Many = Strips<UnpackLines<8, Values::e4m3>, kManyAtOnce>::kernel("e4m3_many_avx512");
constexpr LinearKernel kE4m3 = Panels<FloatBody<8, kRows, false, Values::e4m3>>::kernel("e4m3_avx512", &kE4m3Many, 24);
constexpr LinearKernel kE5m2Many = Strips<UnpackLines<8, Values::e5m2>, kManyAtOnce>::kernel("e5m2_many_avx512");
constexpr LinearKernel kE5m2 = Panels<FloatBody<8, kRows, false, Values::e5m2>>::kernel("e5m2_avx512", &kE5m2Many, 24);

}  // namespace

const LevelKernels kAvx512Kernels = {&kInt4, &kInt8A16, &kInt8, &kInt4A8, &kBook4, &kE4m3, &kE5m2,
                                     probe_floats, probe_words, probe_read};

}  // namespace qcompile
