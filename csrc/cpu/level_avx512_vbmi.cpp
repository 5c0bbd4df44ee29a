// AVX-512 with VBMI, used by levels "avx512" and "avx512_bf16" where the processor has it: numbers of 8 bits by permutations of bytes.
#define QCOMPILE_WIDTH 16
#include "cpu/float_body.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 12;
constexpr LinearKernel kE4m3 = Panels<FloatBody<8, kRows, false, Values::e4m3>>::kernel("e4m3_avx512_vbmi");
constexpr LinearKernel kE5m2 = Panels<FloatBody<8, kRows, false, Values::e5m2>>::kernel("e5m2_avx512_vbmi");

}  // namespace

const LevelKernels kAvx512VbmiKernels = {nullptr, nullptr, nullptr, nullptr, nullptr, &kE4m3, &kE5m2, nullptr, nullptr, nullptr};

}  // namespace qcompile
