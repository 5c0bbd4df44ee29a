// Which implementation a level uses for codes at their own width.
#include "cpu/planes_kernels.h"

namespace qcompile {
namespace {

constexpr Choice<PlanesKernels> kLevels[] = {
#if defined(__x86_64__)
    {&CpuFeatures::avx512_bf16, &kAvx512Bf16Planes, true},
    {&CpuFeatures::avx512, &kAvx512Planes},
    {&CpuFeatures::avx2, &kAvx2Planes},
#endif
    {nullptr, &kGenericPlanes},
};

}  // namespace

const PlanesKernel& planes_kernel(int bits, Isa isa, Dtype dtype) {
  return *first_of(kLevels, isa, dtype != Dtype::f32, [bits](const PlanesKernels& level) -> const PlanesKernel* {
    return level.of[bits].name == nullptr ? nullptr : &level.of[bits];
  });
}

}  // namespace qcompile
