// What an Arm processor has, as the operating system says.
#include "common/isa.h"

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace qcompile {

// Bits of AT_HWCAP and AT_HWCAP2: Linux, arch/arm64/include/uapi/asm/hwcap.h. Elsewhere only what the compiler was told that all have.
CpuFeatures detect_features() {
  CpuFeatures found;
  found.neon = true;  // part of the architecture
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20, kBf16 = 1ul << 14;
  found.arm_dotprod = (getauxval(AT_HWCAP) & kDotProduct) != 0;
  found.arm_bf16 = found.arm_dotprod && (getauxval(AT_HWCAP2) & kBf16) != 0;
#else
#if defined(__ARM_FEATURE_DOTPROD)
  found.arm_dotprod = true;
#endif
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  found.arm_bf16 = found.arm_dotprod;
#endif
#endif
  return found;
}

}  // namespace qcompile
