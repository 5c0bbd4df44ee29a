#include "common/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace qcompile {
namespace {

using Feature = bool CpuFeatures::*;

struct Named {
  Isa isa;
  const char* name;
  Feature needs, also;  // null: nothing
};

// Best first. A bf16 level also promises the products of bytes: every processor with the one has the other.
constexpr Named kNamed[] = {
    {Isa::avx512_bf16, "avx512_bf16", &CpuFeatures::avx512_bf16, &CpuFeatures::avx512_vnni},
    {Isa::avx512, "avx512", &CpuFeatures::avx512, nullptr},
    {Isa::avx2_vnni, "avx2_vnni", &CpuFeatures::vnni_256, nullptr},
    {Isa::avx2, "avx2", &CpuFeatures::avx2, nullptr},
    {Isa::neon_bf16, "neon_bf16", &CpuFeatures::neon_bf16, &CpuFeatures::neon_i8mm},
    {Isa::neon_i8mm, "neon_i8mm", &CpuFeatures::neon_i8mm, nullptr},
    {Isa::neon_dotprod, "neon_dotprod", &CpuFeatures::neon_dotprod, nullptr},
    {Isa::neon, "neon", &CpuFeatures::neon, nullptr},
    {Isa::generic, "generic", nullptr, nullptr},
};

// The least level that may use each feature.
constexpr struct {
  Feature feature;
  Isa from;
} kFrom[] = {
    {&CpuFeatures::avx2, Isa::avx2},           {&CpuFeatures::avx_vnni, Isa::avx2_vnni},
    {&CpuFeatures::vnni_256, Isa::avx2_vnni},  {&CpuFeatures::avx512, Isa::avx512},
    {&CpuFeatures::avx512_vnni, Isa::avx512},  {&CpuFeatures::avx512_bf16, Isa::avx512_bf16},
    {&CpuFeatures::neon, Isa::neon},           {&CpuFeatures::neon_dotprod, Isa::neon_dotprod},
    {&CpuFeatures::neon_i8mm, Isa::neon_i8mm}, {&CpuFeatures::neon_bf16, Isa::neon_bf16},
    {&CpuFeatures::avx512_vbmi, Isa::avx512},  {&CpuFeatures::avx512_bf16_vbmi, Isa::avx512_bf16},
};

bool has(const CpuFeatures& features, Feature feature) { return feature == nullptr || features.*feature; }

std::vector<Isa> detect_levels() {
  const CpuFeatures& here = cpu_features();
  std::vector<Isa> levels;
  for (const Named& level : kNamed)
    if (has(here, level.needs) && has(here, level.also)) levels.push_back(level.isa);
  return levels;
}

std::string level_list() {
  std::string names;
  for (const Isa level : available_isas()) names += (names.empty() ? "" : ", ") + std::string(isa_name(level));
  return names;
}

const char* forced_level() {
  const char* const forced = std::getenv("QCOMPILE_ISA");
  return forced == nullptr || *forced == '\0' ? nullptr : forced;
}

Isa choose() {
  const char* const forced = forced_level();
  if (forced == nullptr) return available_isas().front();
  for (const Isa level : available_isas())
    if (std::string(forced) == isa_name(level)) return level;
  throw std::runtime_error("QCOMPILE_ISA: expected one of the levels of this machine (" + level_list() + "), got '" +
                           forced + "'");
}

}  // namespace

const char* isa_name(Isa isa) {
  for (const Named& level : kNamed)
    if (level.isa == isa) return level.name;
  return "generic";
}

const CpuFeatures& cpu_features() {
  static const CpuFeatures found = detect_features();
  return found;
}

CpuFeatures features_at(Isa isa) {
  CpuFeatures found = cpu_features();
  for (const auto& [feature, from] : kFrom) found.*feature = found.*feature && isa >= from;
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

Isa product_isa_of_index(long long index) {
  static const bool without_pairs =
      cpu_features().slow_bf16_pairs && chosen_isa() == Isa::avx512_bf16 && forced_level() == nullptr;
  return index == -1 && without_pairs ? Isa::avx512 : isa_of_index(index);
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
