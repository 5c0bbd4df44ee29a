// Level "avx2": 16 registers of 8 floats. 2 x 5 sums, two decoded vectors and a number of x fit; totals live in memory.
#define QCOMPILE_WIDTH 8
#include "cpu/float_body.h"
#include "cpu/int4_a8_body.h"
#include "cpu/int8_body.h"
#include "cpu/probe_dots.h"
#include "cpu/unpack_lines.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 5;
constexpr int64_t kManyAtOnce = 6;
constexpr LinearKernel kInt4Many = Strips<UnpackLines<4>, kManyAtOnce>::kernel("int4_many_avx2");
constexpr LinearKernel kInt4 = Panels<FloatBody<4, kRows>>::kernel("int4_avx2", &kInt4Many, 24);
constexpr LinearKernel kInt8A16Many = Strips<UnpackLines<8>, kManyAtOnce>::kernel("int8_a16_many_avx2");
constexpr LinearKernel kInt8A16 = Panels<FloatBody<8, kRows>>::kernel("int8_a16_avx2", &kInt8A16Many, 24);
constexpr LinearKernel kInt8 = Panels<Int8Body<WordDot, kRows>>::kernel("int8_avx2");
constexpr LinearKernel kInt4A8 = Panels<Int4A8Body<NibbleMaddDot, kRows>>::kernel("int4_a8_avx2");
constexpr LinearKernel kBook4Many = Strips<UnpackLines<4, Values::book>, kManyAtOnce>::kernel("book4_many_avx2");
constexpr LinearKernel kBook4 = Panels<FloatBody<4, kRows, false, Values::book>>::kernel("book4_avx2", &kBook4Many, 10);
constexpr LinearKernel kE4m3Many = Strips<UnpackLines<8, Values::e4m3>, kManyAtOnce>::kernel("e4m3_many_avx2");
constexpr LinearKernel kE4m3 = Panels<FloatBody<8, kRows, false, Values::e4m3>>::kernel("e4m3_avx2", &kE4m3Many, 10);
constexpr LinearKernel kE5m2Many = Strips<UnpackLines<8, Values::e5m2>, kManyAtOnce>::kernel("e5m2_many_avx2");
constexpr LinearKernel kE5m2 = Panels<FloatBody<8, kRows, false, Values::e5m2>>::kernel("e5m2_avx2", &kE5m2Many, 10);

}  // namespace

const LevelKernels kAvx2Kernels = {&kInt4, &kInt8A16, &kInt8, &kInt4A8, &kBook4, &kE4m3, &kE5m2,
                                     probe_floats, probe_words, probe_read};

}  // namespace qcompile
