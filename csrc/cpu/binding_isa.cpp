// Queries about the instruction-set levels of this machine.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "common/isa.h"

namespace {

// Name of the level in use (-1) or of a level by index, best first.
std::string native_isa(int64_t level) { return qcompile::isa_name(qcompile::isa_of_index(level)); }

// Names of all levels of this machine, best first, with commas between.
std::string native_isa_levels() {
  std::string names;
  for (const qcompile::Isa level : qcompile::available_isas())
    names += (names.empty() ? "" : ",") + std::string(qcompile::isa_name(level));
  return names;
}

// What the processor has beyond the level, with commas between.
std::string native_cpu_features() {
  const qcompile::CpuFeatures& here = qcompile::cpu_features();
  std::string names;
  const auto add = [&names](bool present, const char* name) {
    if (present) names += (names.empty() ? "" : ",") + std::string(name);
  };
  add(here.avx2, "avx2");
  add(here.avx_vnni, "avx_vnni");
  add(here.avx512, "avx512");
  add(here.avx512_vnni, "avx512_vnni");
  add(here.avx512_bf16, "avx512_bf16");
  return names;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def("native_isa(int level=-1) -> str");
  m.def("native_isa_levels() -> str");
  m.def("native_cpu_features() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CompositeExplicitAutograd, m) {
  m.impl("native_isa", TORCH_BOX(&native_isa));
  m.impl("native_isa_levels", TORCH_BOX(&native_isa_levels));
  m.impl("native_cpu_features", TORCH_BOX(&native_cpu_features));
}
