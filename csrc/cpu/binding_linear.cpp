// The torch boundary of the products: checks, memory and threads; no arithmetic.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
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

Dtype dtype_of(ScalarType type) {
  return type == ScalarType::Float ? Dtype::f32 : type == ScalarType::Half ? Dtype::fp16 : Dtype::bf16;
}

struct Call {
  const char* op;
  Family family;
  const Tensor& x;
  const Tensor& packed;
  const MaybeTensor& perm;
  const MaybeTensor& bias;
  int64_t n, k, group, level;
  Activation activation;
  int64_t few = 0;  // x of fewer rows is not rounded
};

// The family that reads the same packed weight without rounding x.
Family unrounded(Family family) { return family == Family::int4_a8 ? Family::int4 : family == Family::int8 ? Family::int8_a16 : family; }

// What a family reads.
struct Stored {
  const char* packer;
  int bits;
  Values values;
};

Stored stored_as(Family family) {
  switch (family) {
    case Family::int8_a16:
    case Family::int8: return {"native_int8_pack", 8, Values::integers};
    case Family::book4: return {"native_book4_pack", 4, Values::book};
    case Family::e4m3: return {"native_fp8_pack", 8, Values::e4m3};
    case Family::e5m2: return {"native_fp8_pack", 8, Values::e5m2};
    case Family::int4:
    case Family::int4_a8: break;
  }
  return {"native_int4_pack", 4, Values::integers};
}

PackedWeight checked_weight(const Call& call) {
  check_cpu(call.op, "packed", call.packed);
  check_dtype(call.op, "packed", call.packed, {ScalarType::Byte});
  const Stored stored = stored_as(call.family);
  const char* const packer = stored.packer;
  if (call.packed.dim() != 1)
    fail(call.op, "packed", "expected the 1-D tensor of ", packer, ", got shape ", shape_text(call.packed));
  check_contiguous(call.op, "packed", call.packed);
  PackedWeight weight;
  const char* const problem = open_packed(static_cast<const uint8_t*>(call.packed.const_data_ptr()), call.packed.numel(), stored.bits, stored.values, &weight);
  if (problem != nullptr) fail(call.op, "packed", "expected a tensor of ", packer, ", but ", problem);
  const PackedShape& shape = weight.shape;
  if (shape.n != call.n || shape.k != call.k || shape.group != std::min(call.group, call.k))
    fail(call.op, "packed", "expected a weight of n=", call.n, ", k=", call.k, ", group=", call.group, ", got one of n=", shape.n,
         ", k=", shape.k, ", group=", shape.group);
  return weight;
}

const int64_t* checked_perm(const Call& call) {
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
const float* checked_bias(const Call& call, std::vector<float>* values) {
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

Tensor linear(const Call& call) {
  const Tensor& x = call.x;
  check_cpu(call.op, "x", x);
  check_dtype(call.op, "x", x, {ScalarType::BFloat16, ScalarType::Half, ScalarType::Float});
  if (call.k < 1 || x.dim() < 1 || x.size(x.dim() - 1) != call.k)
    fail(call.op, "x", "expected shape [..., ", call.k, "], got ", shape_text(x));
  const PackedWeight weight = checked_weight(call);
  const PackedShape& shape = weight.shape;
  std::vector<float> bias_values;
  LinearInput input = {nullptr, dtype_of(x.scalar_type()), 0, call.k, checked_perm(call), call.activation};
  LinearOutput output = {nullptr, call.n, checked_bias(call, &bias_values)};
  const int64_t rows = x.numel() / call.k, width = input.dtype == Dtype::f32 ? 4 : 2;
  if (call.few < 0) fail(call.op, "few", "expected a number of rows, got ", call.few);
  const Family family = rows < call.few ? unrounded(call.family) : call.family;
  const LinearKernel& kernel = linear_kernel(family, product_isa_of_index(call.level), input.dtype, has_bf16_book(weight));
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

Tensor native_int4_linear(const Tensor x, const Tensor packed, const MaybeTensor perm, const MaybeTensor bias, int64_t n,
                          int64_t k, int64_t group, int64_t level) {
  return linear({"native_int4_linear", Family::int4, x, packed, perm, bias, n, k, group, level, {}});
}

Tensor native_book4_linear(const Tensor x, const Tensor packed, const MaybeTensor perm, const MaybeTensor bias, int64_t n,
                           int64_t k, int64_t group, int64_t level) {
  return linear({"native_book4_linear", Family::book4, x, packed, perm, bias, n, k, group, level, {}});
}

Tensor native_fp8_linear(const Tensor x, const Tensor packed, const MaybeTensor perm, const MaybeTensor bias, int64_t n, int64_t k,
                         int64_t group, bool e5m2, int64_t level) {
  return linear({"native_fp8_linear", e5m2 ? Family::e5m2 : Family::e4m3, x, packed, perm, bias, n, k, group, level, {}});
}

Tensor native_int8_a16_linear(const Tensor x, const Tensor packed, const MaybeTensor perm, const MaybeTensor bias, int64_t n,
                              int64_t k, int64_t group, int64_t level) {
  return linear({"native_int8_a16_linear", Family::int8_a16, x, packed, perm, bias, n, k, group, level, {}});
}

float checked_number(const char* op, const char* argument, const MaybeTensor& tensor) {
  check_cpu(op, argument, *tensor);
  check_dtype(op, argument, *tensor, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Char});
  if (tensor->numel() != 1) fail(op, argument, "expected one element, got shape ", shape_text(*tensor));
  const void* const data = tensor->const_data_ptr();
  switch (tensor->scalar_type()) {
    case ScalarType::Float: return *static_cast<const float*>(data);
    case ScalarType::BFloat16: return bf16_to_float(*static_cast<const uint16_t*>(data));
    case ScalarType::Half: return fp16_to_float(*static_cast<const uint16_t*>(data));
    default: return static_cast<float>(*static_cast<const int8_t*>(data));
  }
}

Activation checked_activation(const char* op, const Tensor& x, int64_t rounding, double divisor, double low, bool narrow,
                              const MaybeTensor& scale, const MaybeTensor& zero) {
  if (rounding < 0 || rounding > 3)
    fail(op, "rounding", "expected 0 (token), 1 (token_asymmetric), 2 (tensor) or 3 (group), got ", rounding);
  Activation activation;
  activation.rounding = static_cast<Rounding>(rounding);
  if (!(divisor >= 1.0 && divisor <= 128.0)) fail(op, "divisor", "expected 1 to 128, got ", divisor);
  if (!(low >= -128.0 && low <= 0.0 && low == std::floor(low))) fail(op, "low", "expected a whole number of -128 to 0, got ", low);
  activation.divisor = static_cast<float>(divisor);
  activation.low = static_cast<float>(low);
  const bool is_static = activation.rounding == Rounding::tensor;
  if (is_static != scale.has_value())
    fail(op, "act_scale", is_static ? "expected the static scale (rounding is 2), got None" : "expected None (the rounding is dynamic), got a tensor");
  if (!is_static && zero.has_value()) fail(op, "act_zero", "expected None (the rounding is dynamic), got a tensor");
  if (scale.has_value()) activation.scale = checked_number(op, "act_scale", scale);
  if (zero.has_value()) activation.zero = checked_number(op, "act_zero", zero);
  if (!(activation.zero >= -128.0f && activation.zero <= 127.0f && activation.zero == std::floor(activation.zero)))
    fail(op, "act_zero", "expected a whole number of -128 to 127, got ", activation.zero);
  // As torch promotes: a scale of another dtype than x takes the arithmetic to float32.
  if (narrow && (!is_static || scale->scalar_type() == x.scalar_type())) activation.steps = dtype_of(x.scalar_type());
  return activation;
}

Tensor native_int8_linear(const Tensor x, const Tensor packed, const MaybeTensor perm, const MaybeTensor bias,
                          const MaybeTensor act_scale, const MaybeTensor act_zero, int64_t n, int64_t k, int64_t group,
                          int64_t rounding, double divisor, double low, bool narrow, int64_t few, int64_t level) {
  constexpr const char* kOp = "native_int8_linear";
  const Activation activation = checked_activation(kOp, x, rounding, divisor, low, narrow, act_scale, act_zero);
  if (activation.rounding == Rounding::group) fail(kOp, "rounding", "expected 0, 1 or 2: only native_int4_a8_linear rounds by group");
  return linear({kOp, Family::int8, x, packed, perm, bias, n, k, group, level, activation, few});
}

Tensor native_int4_a8_linear(const Tensor x, const Tensor packed, const MaybeTensor perm, const MaybeTensor bias,
                             const MaybeTensor act_scale, const MaybeTensor act_zero, int64_t n, int64_t k, int64_t group,
                             int64_t rounding, double divisor, double low, bool narrow, int64_t few, int64_t level) {
  constexpr const char* kOp = "native_int4_a8_linear";
  const Activation activation = checked_activation(kOp, x, rounding, divisor, low, narrow, act_scale, act_zero);
  if (activation.rounding == Rounding::token_asymmetric || activation.zero != 0.0f)
    fail(kOp, activation.zero != 0.0f ? "act_zero" : "rounding", "expected symmetric activations (rounding 0, 2 or 3, zero 0)");
  return linear({kOp, Family::int4_a8, x, packed, perm, bias, n, k, group, level, activation, few});
}

}  // namespace
}  // namespace qcompile

// `narrow`: every step of rounding x is itself rounded to the dtype of x (ActivationQuant.arithmetic is "input").
// `few`: x of fewer rows is not rounded at all.
// `level` is for tests: an index of native_isa_levels(), -1 is the level of this process.
STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def(
      "native_int4_linear(Tensor x, Tensor packed, Tensor? perm, Tensor? bias, int n, int k, int group, *, int level=-1) "
      "-> Tensor");
  m.def(
      "native_book4_linear(Tensor x, Tensor packed, Tensor? perm, Tensor? bias, int n, int k, int group, *, int level=-1) "
      "-> Tensor");
  m.def(
      "native_fp8_linear(Tensor x, Tensor packed, Tensor? perm, Tensor? bias, int n, int k, int group, bool e5m2=False, *, "
      "int level=-1) -> Tensor");
  m.def(
      "native_int8_a16_linear(Tensor x, Tensor packed, Tensor? perm, Tensor? bias, int n, int k, int group, *, "
      "int level=-1) -> Tensor");
  m.def(
      "native_int8_linear(Tensor x, Tensor packed, Tensor? perm, Tensor? bias, Tensor? act_scale, Tensor? act_zero, int n, "
      "int k, int group, int rounding, float divisor, float low, bool narrow, int few=0, *, int level=-1) -> Tensor");
  m.def(
      "native_int4_a8_linear(Tensor x, Tensor packed, Tensor? perm, Tensor? bias, Tensor? act_scale, Tensor? act_zero, "
      "int n, int k, int group, int rounding, float divisor, float low, bool narrow, int few=0, *, int level=-1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CPU, m) {
  m.impl("native_int4_linear", TORCH_BOX(&qcompile::native_int4_linear));
  m.impl("native_book4_linear", TORCH_BOX(&qcompile::native_book4_linear));
  m.impl("native_fp8_linear", TORCH_BOX(&qcompile::native_fp8_linear));
  m.impl("native_int8_a16_linear", TORCH_BOX(&qcompile::native_int8_a16_linear));
  m.impl("native_int8_linear", TORCH_BOX(&qcompile::native_int8_linear));
  m.impl("native_int4_a8_linear", TORCH_BOX(&qcompile::native_int4_a8_linear));
}
