// The torch boundary of the products: checks, memory and threads; no arithmetic.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "cpu/binding_product.h"

namespace qcompile {
namespace {

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

Tensor linear(const Call& call) {
  const ProductCall product = {call.op, call.x, call.perm, call.bias, call.n, call.k};
  check_x(product);
  const PackedWeight weight = checked_weight(call);
  if (call.few < 0) fail(call.op, "few", "expected a number of rows, got ", call.few);
  const Family family = call.x.numel() / call.k < call.few ? unrounded(call.family) : call.family;
  const Isa isa = product_isa_of_index(call.level);
  return run_product(product, weight, linear_kernel(family, isa, dtype_of(call.x.scalar_type()), has_bf16_book(weight)), call.activation);
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
