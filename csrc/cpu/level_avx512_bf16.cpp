// Level "avx512_bf16": products of pairs of bfloat16.
#include "cpu/bf16_body.h"

namespace qcompile {
namespace {

constexpr LinearKernel kInt4 = Panels<Bf16Body<4>>::kernel("int4_avx512_bf16");
constexpr LinearKernel kInt8A16 = Panels<Bf16Body<8>>::kernel("int8_a16_avx512_bf16");

}  // namespace

const LevelKernels kAvx512Bf16Kernels = {&kInt4, &kInt8A16, nullptr, nullptr};

}  // namespace qcompile
