// Which implementation a level uses.
#include "cpu/linear.h"

namespace qcompile {
namespace {

// What the levels provide that `isa` may use, best first: the first entry that is there counts.
template <class Choose>
auto first_of(Isa isa, bool with_bf16, const Choose& choose) {
#if defined(__x86_64__)
  const CpuFeatures features = features_at(isa);
  auto found = choose(kGenericKernels);
  found = nullptr;
  if (features.avx512_bf16 && with_bf16) found = choose(kAvx512Bf16Kernels);
  if (found == nullptr && features.avx512_vnni) found = choose(kAvx512VnniKernels);
  if (found == nullptr && features.avx512) found = choose(kAvx512Kernels);
  if (found == nullptr && features.vnni_256) found = choose(features.avx_vnni ? kAvx2VnniKernels : kAvx2VnniEvexKernels);
  if (found == nullptr && features.avx2) found = choose(kAvx2Kernels);
  if (found != nullptr) return found;
#else
  (void)isa;
  (void)with_bf16;
#endif
  return choose(kGenericKernels);
}

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
  // float32 input would lose bits in pairs of bfloat16: it keeps to float32 products.
  return *first_of(isa, dtype != Dtype::f32, [family](const LevelKernels& level) { return of(level, family); });
}

double (*most_wide_of(Isa isa))(int64_t) {
  return first_of(isa, true, [](const LevelKernels& level) { return level.most_wide; });
}

double (*most_bytes_of(Isa isa))(int64_t) {
  return first_of(isa, true, [](const LevelKernels& level) { return level.most_bytes; });
}

uint32_t (*read_of(Isa isa))(const uint8_t*, int64_t) {
  return first_of(isa, true, [](const LevelKernels& level) { return level.read; });
}

}  // namespace qcompile
