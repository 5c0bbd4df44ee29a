// The operators' library: every kernel family registers its own fragment of the `qcompile` namespace in a file of its
// own (cpu/binding_*.cpp, rocm/binding_*.cpp); this file holds only what belongs to the library as a whole.
#include <torch/csrc/stable/library.h>

#include <cstdint>

namespace {

// Raised when an operator's schema or a packed layout changes, so that Python can refuse a stale build.
int64_t build_version() { return 1; }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) { m.def("_build_version() -> int"); }
STABLE_TORCH_LIBRARY_IMPL(qcompile, CompositeExplicitAutograd, m) { m.impl("_build_version", TORCH_BOX(&build_version)); }
