// What an x86-64 processor has, and the operating system saves on a context switch.
#include <cpuid.h>

#include <cstdint>

#include "common/isa.h"

namespace qcompile {
namespace {

uint64_t enabled_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool has(uint32_t word, int bit) { return (word >> bit & 1u) != 0; }

}  // namespace

// Bits: Intel SDM volume 2, CPUID (AVX-VNNI: leaf 7.1, EAX bit 4); saved states: volume 1, section 13.3 (2 = SSE and AVX, 5..7 = AVX-512).
CpuFeatures detect_features() {
  CpuFeatures found;
  uint32_t a, b, c, d;
  constexpr uint32_t kGenu = 0x756e6547;  // "Genu" of "GenuineIntel"
  found.slow_bf16_pairs = __get_cpuid(0, &a, &b, &c, &d) != 0 && b == kGenu;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, 27)) return found;
  const bool fma = has(c, 12), f16c = has(c, 29), avx = has(c, 28);
  const uint64_t states = enabled_states();
  const bool ymm_saved = (states & 0x6) == 0x6;
  const bool zmm_saved = (states & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const uint32_t leaves = a;
  found.avx2 = ymm_saved && avx && fma && f16c && has(b, 5);
  found.avx512 = found.avx2 && zmm_saved && has(b, 16) && has(b, 17) && has(b, 30) && has(b, 31);
  found.avx512_vnni = found.avx512 && has(c, 11);
  found.avx512_vbmi = found.avx512 && has(c, 1);
  if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    found.avx_vnni = found.avx2 && has(a, 4);
    found.avx512_bf16 = found.avx512 && has(a, 5);
  }
  found.avx512_bf16_vbmi = found.avx512_bf16 && found.avx512_vbmi;
  found.vnni_256 = found.avx_vnni || found.avx512_vnni;
  return found;
}

}  // namespace qcompile
