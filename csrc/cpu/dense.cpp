// Which implementation of dense products a level uses.
#include "cpu/dense.h"

namespace qcompile {

extern const DenseKernel kDenseGeneric;
#if defined(__x86_64__)
extern const DenseKernel kDenseAvx2, kDenseAvx512, kDenseAvx512Bf16;
#elif defined(__aarch64__)
extern const DenseKernel kDenseNeon, kDenseNeonBf16;
#endif

namespace {

constexpr Choice<DenseKernel> kChoices[] = {
#if defined(__x86_64__)
    {&CpuFeatures::avx512_bf16, &kDenseAvx512Bf16, true},
    {&CpuFeatures::avx512, &kDenseAvx512},
    {&CpuFeatures::avx2, &kDenseAvx2},
#elif defined(__aarch64__)
    {&CpuFeatures::neon_bf16, &kDenseNeonBf16, true},
    {&CpuFeatures::neon, &kDenseNeon},
#endif
    {nullptr, &kDenseGeneric},
};

}  // namespace

// Only bfloat16 keeps its bits in pairs of bfloat16.
const DenseKernel& dense_kernel(Isa isa, Element element) { return first_of(kChoices, isa, element == Element::bf16); }

}  // namespace qcompile
