// Which implementation a level uses.
#include "cpu/linear.h"

namespace qcompile {
namespace {

constexpr Choice<LevelKernels> kLevels[] = {
#if defined(__x86_64__)
    {&CpuFeatures::avx512_bf16, &kAvx512Bf16Kernels, true},
    {&CpuFeatures::avx512_bf16_vbmi, &kAvx512Bf16VbmiKernels, true},
    {&CpuFeatures::avx512_vnni, &kAvx512VnniKernels},
    {&CpuFeatures::avx512_vbmi, &kAvx512VbmiKernels},
    {&CpuFeatures::avx512, &kAvx512Kernels},
    {&CpuFeatures::avx_vnni, &kAvx2VnniKernels},
    {&CpuFeatures::vnni_256, &kAvx2VnniEvexKernels},
    {&CpuFeatures::avx2, &kAvx2Kernels},
#elif defined(__aarch64__)
    {&CpuFeatures::neon_bf16, &kNeonBf16Kernels, true},
    {&CpuFeatures::neon_i8mm, &kNeonI8mmKernels},
    {&CpuFeatures::neon_dotprod, &kNeonDotprodKernels},
    {&CpuFeatures::neon, &kNeonKernels},
#endif
    {nullptr, &kGenericKernels},
};

const LinearKernel* of(const LevelKernels& level, Family family) {
  switch (family) {
    case Family::int4: return level.int4;
    case Family::int8_a16: return level.int8_a16;
    case Family::int8: return level.int8;
    case Family::book4: return level.book4;
    case Family::e4m3: return level.e4m3;
    case Family::e5m2: return level.e5m2;
    case Family::int4_a8: break;
  }
  return level.int4_a8;
}

}  // namespace

const LinearKernel& linear_kernel(Family family, Isa isa, Dtype dtype, bool narrow) {
  // float32 input would lose bits in pairs of bfloat16: it keeps to float32 products.
  return *first_of(kLevels, isa, narrow && dtype != Dtype::f32, [family](const LevelKernels& level) { return of(level, family); });
}

double (*most_wide_of(Isa isa))(int64_t) {
  return first_of(kLevels, isa, true, [](const LevelKernels& level) { return level.most_wide; });
}

double (*most_bytes_of(Isa isa))(int64_t) {
  return first_of(kLevels, isa, true, [](const LevelKernels& level) { return level.most_bytes; });
}

uint32_t (*read_of(Isa isa))(const uint8_t*, int64_t) {
  return first_of(kLevels, isa, true, [](const LevelKernels& level) { return level.read; });
}

}  // namespace qcompile
