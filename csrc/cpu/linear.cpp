// Which implementation a level uses.
#include "cpu/linear.h"

namespace qcompile {
namespace {

const LinearKernel* of(const LevelKernels& level, Family family) {
  switch (family) {
    case Family::int4: return level.int4;
    case Family::int8_a16: return level.int8_a16;
    case Family::int8: return level.int8;
    case Family::int4_a8: break;
  }
  return level.int4_a8;
}

}  // namespace

const LinearKernel& linear_kernel(Family family, Isa isa, Dtype dtype) {
#if defined(__x86_64__)
  const CpuFeatures features = features_at(isa);
  const LinearKernel* found = nullptr;
  // float32 input would lose bits in pairs of bfloat16: it keeps to float32 products.
  if (features.avx512_bf16 && dtype != Dtype::f32) found = of(kAvx512Bf16Kernels, family);
  if (found == nullptr && features.avx512_vnni) found = of(kAvx512VnniKernels, family);
  if (found == nullptr && features.avx512) found = of(kAvx512Kernels, family);
  if (found == nullptr && features.avx2) found = of(kAvx2Kernels, family);
  if (found != nullptr) return *found;
#else
  (void)isa;
  (void)dtype;
#endif
  return *of(kGenericKernels, family);
}

}  // namespace qcompile
