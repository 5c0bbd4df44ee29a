// Queries about the instruction-set levels of this machine, and loops that show what it can do at most.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <string>

#include "common/checks.h"
#include "common/isa.h"
#include "common/share.h"
#include "cpu/linear.h"

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

// What the processor has beyond the level, with commas between; where Linux has a name for it, by that.
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
  add(here.avx512_vbmi, "avx512_vbmi");
  add(here.neon, "asimd");
  add(here.neon_dotprod, "asimddp");
  add(here.neon_i8mm, "i8mm");
  add(here.neon_bf16, "bf16");
  return names;
}

// Runs the multiply loop on every thread; returns the operations done, for the caller to divide by the time it took.
double native_probe_multiply(bool bytes, int64_t rounds, int64_t level) {
  if (rounds < 0) qcompile::fail("native_probe_multiply", "rounds", "expected at least 0, got ", rounds);
  const qcompile::Isa isa = qcompile::product_isa_of_index(level);
  double (*const most)(int64_t) = bytes ? qcompile::most_bytes_of(isa) : qcompile::most_wide_of(isa);
  const int64_t threads = torch::stable::get_num_threads();
  std::atomic<int64_t> done{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) done += static_cast<int64_t>(most(rounds));
  });
  return static_cast<double>(done);
}

// Reads all of `buffer` with every thread; returns the XOR of its words (so that nothing can be left out).
int64_t native_probe_read(const torch::stable::Tensor buffer, int64_t level) {
  constexpr const char* kOp = "native_probe_read";
  qcompile::check_cpu(kOp, "buffer", buffer);
  qcompile::check_dtype(kOp, "buffer", buffer, {torch::headeronly::ScalarType::Byte});
  qcompile::check_contiguous(kOp, "buffer", buffer);
  const auto read = qcompile::read_of(qcompile::isa_of_index(level));
  const uint8_t* const from = static_cast<const uint8_t*>(buffer.const_data_ptr());
  constexpr int64_t kPiece = 4096;
  std::atomic<uint32_t> all{0};
  qcompile::share_out(buffer.numel() / kPiece, 64, 1, [&](int64_t begin, int64_t end) {
    all ^= read(from + begin * kPiece, (end - begin) * kPiece);
  });
  return all;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def("native_isa(int level=-1) -> str");
  m.def("native_isa_levels() -> str");
  m.def("native_cpu_features() -> str");
  m.def("native_probe_multiply(bool bytes, int rounds, int level=-1) -> float");
  m.def("native_probe_read(Tensor buffer, int level=-1) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CompositeExplicitAutograd, m) {
  m.impl("native_isa", TORCH_BOX(&native_isa));
  m.impl("native_isa_levels", TORCH_BOX(&native_isa_levels));
  m.impl("native_cpu_features", TORCH_BOX(&native_cpu_features));
  m.impl("native_probe_multiply", TORCH_BOX(&native_probe_multiply));
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CPU, m) { m.impl("native_probe_read", TORCH_BOX(&native_probe_read)); }
