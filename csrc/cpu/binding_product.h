// What the torch boundary of every product of a packed weight does: checks of x, the order of K and the bias; memory and threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/checks.h"
#include "common/half.h"
#include "common/memory.h"
#include "common/share.h"
#include "cpu/linear.h"

namespace qcompile {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline Dtype dtype_of(ScalarType type) {
  return type == ScalarType::Float ? Dtype::f32 : type == ScalarType::Half ? Dtype::fp16 : Dtype::bf16;
}

// What every product is given, beside its weight [n, k].
struct ProductCall {
  const char* op;
  const Tensor& x;
  const MaybeTensor& perm;
  const MaybeTensor& bias;
  int64_t n, k;
};

inline const int64_t* checked_perm(const ProductCall& call) {
  if (!call.perm.has_value()) return nullptr;
  check_cpu(call.op, "perm", *call.perm);
  check_dtype(call.op, "perm", *call.perm, {ScalarType::Long});
  check_shape(call.op, "perm", *call.perm, {call.k});
  check_contiguous(call.op, "perm", *call.perm);
  const int64_t* const index = call.perm->const_data_ptr<int64_t>();
  for (int64_t i = 0; i < call.k; ++i)
    if (index[i] < 0 || index[i] >= call.k)
      fail(call.op, "perm", "expected indices of 0 to ", call.k - 1, ", got ", index[i], " at ", i);
  return index;
}

// The bias as float32; `values` holds it where it had to be converted.
inline const float* checked_bias(const ProductCall& call, std::vector<float>* values) {
  if (!call.bias.has_value()) return nullptr;
  const Tensor& bias = *call.bias;
  check_cpu(call.op, "bias", bias);
  check_dtype(call.op, "bias", bias, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  check_shape(call.op, "bias", bias, {call.n});
  check_contiguous(call.op, "bias", bias);
  if (bias.scalar_type() == ScalarType::Float) return static_cast<const float*>(bias.const_data_ptr());
  const uint16_t* const half = static_cast<const uint16_t*>(bias.const_data_ptr());
  const bool bf16 = bias.scalar_type() == ScalarType::BFloat16;
  values->resize(static_cast<size_t>(call.n));
  for (size_t i = 0; i < values->size(); ++i) (*values)[i] = bf16 ? bf16_to_float(half[i]) : fp16_to_float(half[i]);
  return values->data();
}

inline void check_x(const ProductCall& call) {
  check_cpu(call.op, "x", call.x);
  check_dtype(call.op, "x", call.x, {ScalarType::BFloat16, ScalarType::Half, ScalarType::Float});
  if (call.k < 1 || call.x.dim() < 1 || call.x.size(call.x.dim() - 1) != call.k)
    fail(call.op, "x", "expected shape [..., ", call.k, "], got ", shape_text(call.x));
}

// y [..., n] of an x that `check_x` has seen.
template <class Weight>
Tensor run_product(const ProductCall& call, const Weight& weight, const LinearKernelOf<Weight>& given, const Activation& activation) {
  const auto& shape = weight.shape;
  const Tensor& x = call.x;
  std::vector<float> bias_values;
  LinearInput input = {nullptr, dtype_of(x.scalar_type()), 0, call.k, checked_perm(call), activation};
  LinearOutput output = {nullptr, call.n, checked_bias(call, &bias_values)};
  const int64_t rows = x.numel() / call.k, width = input.dtype == Dtype::f32 ? 4 : 2;
  const LinearKernelOf<Weight>& kernel = given.many != nullptr && rows >= given.many_rows ? *given.many : given;
  const Tensor x_in = torch::stable::contiguous(x);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = call.n;
  Tensor y = torch::stable::new_empty(x, sizes);
  const uint8_t* const x_data = static_cast<const uint8_t*>(x_in.const_data_ptr());
  uint8_t* const y_data = static_cast<uint8_t*>(y.mutable_data_ptr());
  // As many rows in each chunk as in the others: a short last one would decode the weight for little.
  const int64_t chunks = (rows + kernel.max_rows(shape) - 1) / kernel.max_rows(shape);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t row = rows * chunk / chunks;
    input.x = x_data + row * call.k * width;
    input.m = rows * (chunk + 1) / chunks - row;
    output.y = y_data + row * call.n * width;
    void* const prepared = thread_scratch(static_cast<size_t>(kernel.prepared_bytes(shape, input.dtype, input.m)));
    const int64_t panels = kernel.panels(input.dtype, input.m);
    // A thread is worth waking for some 32 Ki values.
    const int64_t panel_grain = std::max<int64_t>(1, 32768 * panels / (input.m * call.k));
    torch::stable::parallel_for(0, panels, panel_grain, [&](int64_t begin, int64_t end) {
      kernel.prepare(weight, input, prepared, begin, end);
    });
    const int64_t block_grain = std::max<int64_t>(1, 32768 / (shape.lines() * kLineBytes));
    const int64_t unit = panels == 1 ? 1 : blocks_at_once(shape);
    share_out(shape.blocks(), block_grain, unit, [&](int64_t begin, int64_t end) {
      kernel.run(weight, input, prepared, output, begin, end);
    });
  }
  return y;
}

}  // namespace
}  // namespace qcompile
