#include "common/isa.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace qcompile {
namespace {

#if defined(__x86_64__)
uint64_t enabled_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool has(uint32_t word, int bit) { return (word >> bit & 1u) != 0; }

// Bits: Intel SDM volume 2, CPUID (AVX-VNNI: leaf 7.1, EAX bit 4); saved states: volume 1, section 13.3 (2 = SSE and AVX, 5..7 = AVX-512).
CpuFeatures detect() {
  CpuFeatures found;
  uint32_t a, b, c, d;
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
  if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    found.avx_vnni = found.avx2 && has(a, 4);
    found.avx512_bf16 = found.avx512 && has(a, 5);
  }
  found.vnni_256 = found.avx_vnni || found.avx512_vnni;
  return found;
}
#else
CpuFeatures detect() { return {}; }
#endif

std::vector<Isa> detect_levels() {
  const CpuFeatures& here = cpu_features();
  std::vector<Isa> levels;
  // The bf16 level also promises VNNI: every processor with the one has the other.
  if (here.avx512_bf16 && here.avx512_vnni) levels.push_back(Isa::avx512_bf16);
  if (here.avx512) levels.push_back(Isa::avx512);
  if (here.vnni_256) levels.push_back(Isa::avx2_vnni);
  if (here.avx2) levels.push_back(Isa::avx2);
  levels.push_back(Isa::generic);
  return levels;
}

std::string level_list() {
  std::string names;
  for (const Isa level : available_isas()) names += (names.empty() ? "" : ", ") + std::string(isa_name(level));
  return names;
}

Isa choose() {
  const char* forced = std::getenv("QCOMPILE_ISA");
  if (forced == nullptr || *forced == '\0') return available_isas().front();
  for (const Isa level : available_isas())
    if (std::string(forced) == isa_name(level)) return level;
  throw std::runtime_error("QCOMPILE_ISA: expected one of the levels of this machine (" + level_list() + "), got '" +
                           forced + "'");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2_vnni: return "avx2_vnni";
    case Isa::avx2: return "avx2";
    case Isa::generic: break;
  }
  return "generic";
}

const CpuFeatures& cpu_features() {
  static const CpuFeatures found = detect();
  return found;
}

CpuFeatures features_at(Isa isa) {
  CpuFeatures found = cpu_features();
  found.avx2 = found.avx2 && isa >= Isa::avx2;
  found.avx_vnni = found.avx_vnni && isa >= Isa::avx2_vnni;
  found.vnni_256 = found.vnni_256 && isa >= Isa::avx2_vnni;
  found.avx512 = found.avx512 && isa >= Isa::avx512;
  found.avx512_vnni = found.avx512_vnni && isa >= Isa::avx512;
  found.avx512_bf16 = found.avx512_bf16 && isa >= Isa::avx512_bf16;
  return found;
}

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> levels = detect_levels();
  return levels;
}

Isa chosen_isa() {
  static const Isa level = choose();
  return level;
}

Isa isa_of_index(long long index) {
  if (index == -1) return chosen_isa();
  const auto& levels = available_isas();
  if (index < 0 || index >= static_cast<long long>(levels.size()))
    throw std::runtime_error("level: expected -1 or an index of the levels of this machine (" + level_list() + "), got " +
                             std::to_string(index));
  return levels[static_cast<size_t>(index)];
}

}  // namespace qcompile
