// The torch boundary of dense products: checks, memory and threads, and the hand-over of many rows to PyTorch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "common/checks.h"
#include "common/memory.h"
#include "common/share.h"
#include "cpu/binding_element.h"
#include "cpu/dense.h"

namespace qcompile {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

constexpr const char* kOp = "native_dense_linear";
constexpr int64_t kLeastBytes = 65536;  // of the weight, that a thread is worth waking for

void check(const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  check_cpu(kOp, "x", x);
  check_dtype(kOp, "x", x, {ScalarType::BFloat16, ScalarType::Half, ScalarType::Float});
  if (x.dim() < 1) fail(kOp, "x", "expected shape [..., K], got ", shape_text(x));
  check_cpu(kOp, "weight", weight);
  check_dtype(kOp, "weight", weight, {x.scalar_type()});
  if (weight.dim() != 2 || weight.size(1) != x.size(x.dim() - 1))
    fail(kOp, "weight", "expected shape [N, ", x.size(x.dim() - 1), "] for this x, got ", shape_text(weight));
  if (!bias.has_value()) return;
  check_cpu(kOp, "bias", *bias);
  check_dtype(kOp, "bias", *bias, {x.scalar_type()});
  check_shape(kOp, "bias", *bias, {weight.size(0)});
}

Tensor torch_linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack = {from(x), from(weight), from(bias)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor native_dense_linear(const Tensor x, const Tensor weight, const MaybeTensor bias, int64_t level) {
  check(x, weight, bias);
  const int64_t k = weight.size(1), n = weight.size(0);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = n;
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) rows *= x.size(d);
  const bool unit = weight.stride(1) == 1 || k <= 1;
  if (rows * n == 0) return torch::stable::new_empty(x, sizes);
  if (rows > kMostDenseRows || k == 0 || !unit) {
    const Tensor y = torch_linear(x, weight, bias);
    return y.is_contiguous() ? y : torch::stable::contiguous(y);
  }
  const Tensor x_in = torch::stable::contiguous(x);
  Tensor bias_in;
  if (bias.has_value()) bias_in = torch::stable::contiguous(*bias);
  Tensor y = torch::stable::new_empty(x, sizes);
  Dense dense;
  dense.m = rows;
  dense.n = n;
  dense.k = k;
  dense.element = element_of(x.scalar_type());
  dense.x = x_in.const_data_ptr();
  dense.weight = weight.const_data_ptr();
  dense.bias = bias.has_value() ? bias_in.const_data_ptr() : nullptr;
  dense.y = y.mutable_data_ptr();
  dense.x_stride = k;
  dense.weight_stride = weight.stride(0);
  dense.y_stride = n;
  const DenseKernel& kernel = dense_kernel(isa_of_index(level), dense.element);
  void* const prepared = thread_scratch(kernel.prepared_bytes(dense));
  kernel.prepare(dense, prepared);
  const int64_t grain = std::max<int64_t>(8, kLeastBytes / (k * element_bytes(dense.element)));
  constexpr int64_t kOutputs = 32;  // of one cache line or more: threads do not write to the same ones
  share_out(n, grain, kOutputs, [&](int64_t begin, int64_t end) { kernel.run(dense, prepared, begin, end); });
  return y;
}

}  // namespace
}  // namespace qcompile

STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def("native_dense_linear(Tensor x, Tensor weight, Tensor? bias, *, int level=-1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CPU, m) { m.impl("native_dense_linear", TORCH_BOX(&qcompile::native_dense_linear)); }
