// Level "avx512_bf16" where the processor has VBMI, too: numbers of 8 bits as pairs of bfloat16.
#define QCOMPILE_WIDTH 16
#include "cpu/bf16_body.h"

namespace qcompile {
namespace {

constexpr LinearKernel kE4m3 = Panels<Bf16Body<8, Values::e4m3>>::kernel("e4m3_avx512_bf16");
constexpr LinearKernel kE5m2 = Panels<Bf16Body<8, Values::e5m2>>::kernel("e5m2_avx512_bf16");

}  // namespace

const LevelKernels kAvx512Bf16VbmiKernels = {nullptr, nullptr, nullptr, nullptr, nullptr, &kE4m3, &kE5m2, nullptr, nullptr, nullptr};

}  // namespace qcompile
