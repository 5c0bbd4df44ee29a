// What a 64-bit Arm processor has, as Linux says; another system is asked nothing, and has what every such processor has.
#include "common/isa.h"

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace qcompile {
namespace {

struct Words {
  unsigned long first = 0, second = 0;
};

Words asked() {
#if defined(__linux__)
  return {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
#else
  return {1ul << 1, 0};
#endif
}

}  // namespace

// Bits: Linux, Documentation/arch/arm64/elf_hwcaps.rst and uapi/asm/hwcap.h (HWCAP_ASIMD 1, HWCAP_ASIMDDP 20, HWCAP2_I8MM 13,
// HWCAP2_BF16 14). What a system does not save or the processor lacks is not among them.
CpuFeatures detect_features() {
  const Words words = asked();
  const auto has = [](unsigned long word, int bit) { return (word >> bit & 1u) != 0; };
  CpuFeatures found;
  found.neon = has(words.first, 1);
  found.neon_dotprod = found.neon && has(words.first, 20);
  found.neon_i8mm = found.neon_dotprod && has(words.second, 13);
  found.neon_bf16 = found.neon && has(words.second, 14);
  return found;
}

}  // namespace qcompile
