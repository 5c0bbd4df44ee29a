// The torch boundary of gptq_gemm_rdna3: every check of the arguments, memory for result and workspace, and the launcher.
//
// Built with every torch. Only a build for ROCm has a launcher; elsewhere the operator checks its arguments and then says
// what is missing. Tests put the emulated kernel behind it with qcompile_rdna3_use_launcher.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <limits>

#include "common/checks.h"
#include "rocm/launch.h"

using Launcher = const char* (*)(const qcompile_rdna3_problem*);

namespace {

#if defined(QCOMPILE_ROCM)
const Launcher kDeviceLauncher = &qcompile_rdna3_launch;
#else
const Launcher kDeviceLauncher = nullptr;
#endif

Launcher host_launcher = nullptr;

}  // namespace

// Runs the operator's CPU tensors with `launcher` (null: refuses them again). For tests: the emulated kernel.
extern "C" __attribute__((visibility("default"))) void qcompile_rdna3_use_launcher(Launcher launcher) {
  host_launcher = launcher;
}

namespace qcompile {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "gptq_gemm_rdna3";

void check_matrix(const char* argument, const Tensor& tensor, const char* shape) {
  if (tensor.dim() != 2) fail(kOp, argument, "expected shape ", shape, ", got ", shape_text(tensor));
}

void check_place(const char* argument, const Tensor& tensor, const Tensor& a) {
  if (tensor.is_cpu() != a.is_cpu() || tensor.is_cuda() != a.is_cuda() || tensor.get_device_index() != a.get_device_index())
    fail(kOp, argument, "expected a tensor on the same device as a, got one on another device; move it with .to(a.device)");
  check_contiguous(kOp, argument, tensor);
  if (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 != 0)
    fail(kOp, argument, "expected data aligned to 16 bytes, got a view that starts in between; call .clone()");
}

// Entries on the host are looked at; on a device that would mean waiting, and the kernel reads nothing foreign either way.
void check_permutation(const Tensor& perm, int64_t k) {
  check_dtype(kOp, "b_g_idx", perm, {ScalarType::Int});
  if (perm.numel() == 0) return;
  if (perm.dim() != 1 || perm.size(0) != k)
    fail(kOp, "b_g_idx", "expected a permutation of shape [K] = [", k, "], or an empty tensor for none, got ",
         shape_text(perm));
  if (!perm.is_cpu()) return;
  const int32_t* entries = perm.const_data_ptr<int32_t>();
  const auto [least, most] = std::minmax_element(entries, entries + k);
  if (*least < 0 || *most >= k)
    fail(kOp, "b_g_idx", "expected indices of 0 to ", k - 1, ", got ", *least, " to ", *most,
         " (a permutation of the columns of a, not GPTQ's g_idx: its argsort)");
}

// Everything but the addresses.
qcompile_rdna3_problem checked(const Tensor& a, const Tensor& qweight, const Tensor& qzeros, const Tensor& scales,
                               const Tensor& perm) {
  check_matrix("a", a, "[M, K]");
  check_dtype(kOp, "a", a, {ScalarType::Half, ScalarType::BFloat16});
  const int64_t m = a.size(0), k = a.size(1);
  if (k < 32 || k % 32 != 0 || k > (1 << 20))
    fail(kOp, "a", "expected K to be a multiple of 32 from 32 to 2^20, got K = ", k, " in shape ", shape_text(a));
  if (m > std::numeric_limits<int32_t>::max()) fail(kOp, "a", "expected fewer than 2^31 rows, got ", m);
  check_contiguous(kOp, "a", a);
  check_matrix("b_q_weight", qweight, "[K / 8, N]");
  check_dtype(kOp, "b_q_weight", qweight, {ScalarType::Int});
  const int64_t n = qweight.size(1);
  if (n < 8 || n % 8 != 0 || n > (1 << 26))
    fail(kOp, "b_q_weight", "expected N to be a multiple of 8 from 8 to 2^26, got N = ", n, " in shape ", shape_text(qweight));
  check_shape(kOp, "b_q_weight", qweight, {k / 8, n});
  check_matrix("b_scales", scales, "[K / group, N]");
  check_dtype(kOp, "b_scales", scales, {a.scalar_type()});
  const int64_t groups = scales.size(0);
  if (groups < 1 || k % groups != 0 || k / groups % 32 != 0)
    fail(kOp, "b_scales", "expected K / group rows with a group that is a multiple of 32 and divides K = ", k, ", got ", groups,
         " rows");
  check_shape(kOp, "b_scales", scales, {groups, n});
  check_matrix("b_qzeros", qzeros, "[K / group, N / 8]");
  check_dtype(kOp, "b_qzeros", qzeros, {ScalarType::Int});
  check_shape(kOp, "b_qzeros", qzeros, {groups, n / 8});
  check_place("b_q_weight", qweight, a);
  check_place("b_qzeros", qzeros, a);
  check_place("b_scales", scales, a);
  check_place("b_g_idx", perm, a);
  check_permutation(perm, k);
  qcompile_rdna3_problem problem = {};
  problem.m = static_cast<int32_t>(m);
  problem.n = static_cast<int32_t>(n);
  problem.k = static_cast<int32_t>(k);
  problem.group = static_cast<int32_t>(k / groups);
  problem.bf16 = a.scalar_type() == ScalarType::BFloat16;
  problem.path = -1;
  return problem;
}

Launcher launcher_for(const Tensor& a) {
  if (a.is_cpu()) {
    if (host_launcher == nullptr)
      fail(kOp, "a",
           "expected a tensor on a gfx1100 device with a build of qcompile for ROCm, got one on the CPU; "
           "choose a kernel for the CPU, or compile without the option platform");
    return host_launcher;
  }
  if (kDeviceLauncher == nullptr || !a.is_cuda())
    fail(
        kOp, "a",
        "this qcompile was built with a torch that is not for ROCm, so it has no code for a device; expected a gfx1100 device, "
        "a torch built for ROCm (torch.version.hip), and qcompile installed again with it");
  return kDeviceLauncher;
}

Tensor run(const Tensor& a, const Tensor& qweight, const Tensor& qzeros, const Tensor& scales, const Tensor& perm, bool v2) {
  qcompile_rdna3_problem problem = checked(a, qweight, qzeros, scales, perm);
  Tensor out = torch::stable::new_empty(a, {a.size(0), qweight.size(1)});
  if (problem.m == 0) return out;
  const Launcher launch = launcher_for(a);
  // A view of a longer tensor may start anywhere; rows are whole multiples of 64 bytes, so only its beginning matters.
  const bool aligned = reinterpret_cast<uintptr_t>(a.const_data_ptr()) % 16 == 0;
  const Tensor source = aligned ? a : torch::stable::clone(a);
  problem.a = source.const_data_ptr();
  problem.qweight = qweight.const_data_ptr();
  problem.qzeros = qzeros.const_data_ptr();
  problem.scales = scales.const_data_ptr();
  problem.perm = perm.numel() == 0 ? nullptr : perm.const_data_ptr();
  problem.out = out.mutable_data_ptr();
  problem.zero_offset = v2 ? 0 : 1;
  const auto bytes = static_cast<int64_t>(qcompile_rdna3_workspace(&problem));
  Tensor workspace;
  if (bytes > 0) {
    workspace = torch::stable::new_empty(a, {bytes}, ScalarType::Byte);
    problem.workspace = workspace.mutable_data_ptr();
  }
  const char* reason = nullptr;
  if (a.is_cpu()) {
    reason = launch(&problem);
  } else {
    const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
    problem.stream = torch::stable::accelerator::getCurrentStream(a.get_device_index()).nativeHandle();
    reason = launch(&problem);
  }
  if (reason != nullptr) fail(kOp, "a", reason);
  return out;
}

Tensor gptq_gemm_rdna3(const Tensor a, const Tensor b_q_weight, const Tensor b_qzeros, const Tensor b_scales,
                       const Tensor b_g_idx, bool use_v2_format) {
  return run(a, b_q_weight, b_qzeros, b_scales, b_g_idx, use_v2_format);
}

// Whether this build can run on a device at all.
bool rdna3_device_code() { return kDeviceLauncher != nullptr; }

}  // namespace
}  // namespace qcompile

STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def(
      "gptq_gemm_rdna3(Tensor a, Tensor b_q_weight, Tensor b_qzeros, Tensor b_scales, Tensor b_g_idx, bool use_v2_format) -> "
      "Tensor");
  m.def("rdna3_device_code() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CompositeExplicitAutograd, m) {
  m.impl("gptq_gemm_rdna3", TORCH_BOX(&qcompile::gptq_gemm_rdna3));
  m.impl("rdna3_device_code", TORCH_BOX(&qcompile::rdna3_device_code));
}
