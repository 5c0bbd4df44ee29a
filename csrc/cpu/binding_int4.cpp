// The torch boundary of the 4-bit kernels: checks, memory and threads; no arithmetic.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <vector>

#include "common/checks.h"
#include "common/half.h"
#include "common/memory.h"
#include "cpu/int4.h"

namespace qcompile {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

ScaleKind scale_kind_of(ScalarType type) {
  return type == ScalarType::Float ? ScaleKind::f32 : type == ScalarType::Half ? ScaleKind::fp16 : ScaleKind::bf16;
}

Dtype dtype_of(ScalarType type) {
  return type == ScalarType::Float ? Dtype::f32 : type == ScalarType::Half ? Dtype::fp16 : Dtype::bf16;
}

Tensor native_int4_pack(const Tensor codes, const Tensor scales, const std::optional<Tensor> zeros, int64_t group) {
  constexpr const char* kOp = "native_int4_pack";
  check_cpu(kOp, "codes", codes);
  check_dtype(kOp, "codes", codes, {ScalarType::Char});
  if (codes.dim() != 2 || codes.size(0) < 1 || codes.size(1) < 1)
    fail(kOp, "codes", "expected shape [N, K] with N and K of at least 1, got ", shape_text(codes));
  if (group < 1) fail(kOp, "group", "expected at least 1 (K for one group per output), got ", group);
  Int4Shape shape;
  shape.n = codes.size(0);
  shape.k = codes.size(1);
  shape.group = std::min(group, shape.k);
  check_cpu(kOp, "scales", scales);
  check_dtype(kOp, "scales", scales, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  check_shape(kOp, "scales", scales, {shape.n, shape.groups()});
  shape.scale_kind = scale_kind_of(scales.scalar_type());
  shape.has_zeros = zeros.has_value();
  const Tensor codes_in = torch::stable::contiguous(codes), scales_in = torch::stable::contiguous(scales);
  Int4Source source = {codes_in.const_data_ptr<int8_t>(), scales_in.const_data_ptr(), shape.scale_kind, nullptr};
  if (shape.scale_kind == ScaleKind::f32) {
    const int64_t wide = shape.total_bytes();
    shape.scale_kind = int4_narrowest_kind(static_cast<const float*>(source.scales), scales_in.numel());
    shape.unused_bytes = wide - shape.used_bytes();
  }
  Tensor zeros_in;
  if (zeros.has_value()) {
    check_cpu(kOp, "zeros", *zeros);
    check_dtype(kOp, "zeros", *zeros, {ScalarType::Char});
    check_shape(kOp, "zeros", *zeros, {shape.n, shape.groups()});
    zeros_in = torch::stable::contiguous(*zeros);
    source.zeros = zeros_in.const_data_ptr<int8_t>();
    for (int64_t i = 0; i < shape.n * shape.groups(); ++i)
      if (source.zeros[i] < 0 || source.zeros[i] > 16)
        fail(kOp, "zeros", "expected 0 to 16, got ", static_cast<int>(source.zeros[i]), " at [", i / shape.groups(), ", ",
             i % shape.groups(), "]");
  }
  Tensor packed = torch::stable::new_empty(codes, {shape.total_bytes()}, ScalarType::Byte);
  uint8_t* const out = static_cast<uint8_t*>(packed.mutable_data_ptr());
  prefer_huge_pages(out, static_cast<size_t>(shape.total_bytes()));
  int4_write_header(shape, out);
  std::memset(out + shape.used_bytes(), 0, static_cast<size_t>(shape.unused_bytes));
  std::atomic<int64_t> wrong{-1};
  const int64_t grain = std::max<int64_t>(1, 32768 / (shape.k * kBlock));
  torch::stable::parallel_for(0, shape.blocks(), grain, [&](int64_t begin, int64_t end) {
    const int64_t at = int4_pack_blocks(shape, source, out, begin, end);
    if (at >= 0) wrong = at;
  });
  if (wrong >= 0)
    fail(kOp, "codes", zeros.has_value() ? "expected 0 to 15 (with zeros), got " : "expected -8 to 7 (without zeros), got ",
         static_cast<int>(source.codes[wrong]), " at [", wrong / shape.k, ", ", wrong % shape.k, "]");
  return packed;
}

std::vector<float> bias_as_float(const Tensor& bias, int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  const uint16_t* const half = static_cast<const uint16_t*>(bias.const_data_ptr());
  const bool bf16 = bias.scalar_type() == ScalarType::BFloat16;
  for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i)] = bf16 ? bf16_to_float(half[i]) : fp16_to_float(half[i]);
  return values;
}

Int4Weight open_weight(const char* op, const Tensor& packed, int64_t n, int64_t k, int64_t group) {
  check_cpu(op, "packed", packed);
  check_dtype(op, "packed", packed, {ScalarType::Byte});
  if (packed.dim() != 1) fail(op, "packed", "expected the 1-D tensor of native_int4_pack, got shape ", shape_text(packed));
  check_contiguous(op, "packed", packed);
  Int4Weight weight;
  const char* const problem = int4_open(static_cast<const uint8_t*>(packed.const_data_ptr()), packed.numel(), &weight);
  if (problem != nullptr) fail(op, "packed", "expected a tensor of native_int4_pack, but ", problem);
  const Int4Shape& shape = weight.shape;
  if (shape.n != n || shape.k != k || shape.group != std::min(group, k))
    fail(op, "packed", "expected a weight of n=", n, ", k=", k, ", group=", group, ", got one of n=", shape.n, ", k=",
         shape.k, ", group=", shape.group);
  return weight;
}

void check_perm(const char* op, const Tensor& perm, int64_t k) {
  check_cpu(op, "perm", perm);
  check_dtype(op, "perm", perm, {ScalarType::Long});
  check_shape(op, "perm", perm, {k});
  check_contiguous(op, "perm", perm);
  const int64_t* const index = perm.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < k; ++i)
    if (index[i] < 0 || index[i] >= k) fail(op, "perm", "expected indices of 0 to ", k - 1, ", got ", index[i], " at ", i);
}

Tensor native_int4_linear(const Tensor x, const Tensor packed, const std::optional<Tensor> perm,
                          const std::optional<Tensor> bias, int64_t n, int64_t k, int64_t group, int64_t level) {
  constexpr const char* kOp = "native_int4_linear";
  check_cpu(kOp, "x", x);
  check_dtype(kOp, "x", x, {ScalarType::BFloat16, ScalarType::Half, ScalarType::Float});
  if (x.dim() < 1 || x.size(x.dim() - 1) != k) fail(kOp, "x", "expected shape [..., ", k, "], got ", shape_text(x));
  const Int4Weight weight = open_weight(kOp, packed, n, k, group);
  if (perm.has_value()) check_perm(kOp, *perm, k);
  std::vector<float> bias_values;
  Int4Output output = {nullptr, n, nullptr};
  if (bias.has_value()) {
    check_cpu(kOp, "bias", *bias);
    check_dtype(kOp, "bias", *bias, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
    check_shape(kOp, "bias", *bias, {n});
    check_contiguous(kOp, "bias", *bias);
    if (bias->scalar_type() != ScalarType::Float) bias_values = bias_as_float(*bias, n);
    output.bias = bias_values.empty() ? static_cast<const float*>(bias->const_data_ptr()) : bias_values.data();
  }
  const Tensor x_in = torch::stable::contiguous(x);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = n;
  Tensor y = torch::stable::new_empty(x, sizes);
  const int64_t rows = x.numel() / k, width = static_cast<int64_t>(x.element_size());
  const Int4Shape& shape = weight.shape;
  const Dtype dtype = dtype_of(x.scalar_type());
  const Int4Kernel& kernel = int4_kernel(isa_of_index(level), dtype);
  const int64_t most = kernel.max_rows(shape);
  for (int64_t row = 0; row < rows; row += most) {
    Int4Input input = {static_cast<const uint8_t*>(x_in.const_data_ptr()) + row * k * width, dtype,
                       std::min(most, rows - row), k, perm.has_value() ? perm->const_data_ptr<int64_t>() : nullptr};
    output.y = static_cast<uint8_t*>(y.mutable_data_ptr()) + row * n * width;
    void* const prepared = thread_scratch(static_cast<size_t>(kernel.prepared_bytes(shape, dtype, input.m)));
    const int64_t panels = kernel.panels(dtype, input.m);
    // A thread is worth waking for 32 Ki values.
    const int64_t panel_grain = std::max<int64_t>(1, 32768 * panels / (input.m * k));
    torch::stable::parallel_for(0, panels, panel_grain, [&](int64_t begin, int64_t end) {
      kernel.prepare(weight, input, prepared, begin, end);
    });
    const int64_t block_grain = std::max<int64_t>(1, 32768 / (shape.lines() * kLineBytes));
    torch::stable::parallel_for(0, shape.blocks(), block_grain, [&](int64_t begin, int64_t end) {
      kernel.run(weight, input, prepared, output, begin, end);
    });
  }
  return y;
}

}  // namespace
}  // namespace qcompile

STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def("native_int4_pack(Tensor codes, Tensor scales, Tensor? zeros, int group) -> Tensor");
  m.def(
      "native_int4_linear(Tensor x, Tensor packed, Tensor? perm, Tensor? bias, int n, int k, int group, *, int level=-1) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CPU, m) {
  m.impl("native_int4_pack", TORCH_BOX(&qcompile::native_int4_pack));
  m.impl("native_int4_linear", TORCH_BOX(&qcompile::native_int4_linear));
}
