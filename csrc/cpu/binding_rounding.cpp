// The torch boundary of rounding to small floats: checks, memory and threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "common/checks.h"
#include "common/half.h"
#include "common/share.h"
#include "cpu/binding_element.h"
#include "cpu/rounding.h"

namespace qcompile {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

constexpr const char* kOp = "native_round_floats";

float checked_scale(FloatKind kind, const MaybeTensor& scale) {
  if (is_static(kind) != scale.has_value())
    fail(kOp, "scale", is_static(kind) ? "expected the static scale of this kind, got None" : "expected None (the kind is dynamic), got a tensor");
  if (!scale.has_value()) return 1.0f;
  check_cpu(kOp, "scale", *scale);
  check_dtype(kOp, "scale", *scale, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  if (scale->numel() != 1) fail(kOp, "scale", "expected one element, got shape ", shape_text(*scale));
  const void* const data = scale->const_data_ptr();
  if (scale->scalar_type() == ScalarType::Float) return *static_cast<const float*>(data);
  const uint16_t half = *static_cast<const uint16_t*>(data);
  return scale->scalar_type() == ScalarType::BFloat16 ? bf16_to_float(half) : fp16_to_float(half);
}

Tensor native_round_floats(const Tensor x, const MaybeTensor scale, int64_t kind, bool narrow, int64_t level) {
  check_cpu(kOp, "x", x);
  check_dtype(kOp, "x", x, {ScalarType::BFloat16, ScalarType::Half, ScalarType::Float});
  if (kind < 0 || kind >= kFloatKinds) fail(kOp, "kind", "expected 0 to ", kFloatKinds - 1, ", got ", kind);
  if (x.dim() < 1) fail(kOp, "x", "expected shape [..., K], got ", shape_text(x));
  FloatRounding rounding;
  rounding.kind = static_cast<FloatKind>(kind);
  rounding.k = x.size(x.dim() - 1);
  const int64_t group = group_of(rounding.kind);
  if (group != 0 && rounding.k % group != 0)
    fail(kOp, "x", "expected shape [..., K] with K a multiple of ", group, ", got ", shape_text(x));
  rounding.scale = checked_scale(rounding.kind, scale);
  rounding.element = element_of(x.scalar_type());
  // As torch promotes: a scale of another dtype than x takes the arithmetic to float32.
  const bool same = rounding.kind != FloatKind::fp8_tensor || scale->scalar_type() == x.scalar_type();
  rounding.steps = narrow && same ? rounding.element : Element::f32;
  const Tensor x_in = torch::stable::contiguous(x);
  Tensor y = torch::stable::new_empty(x, std::vector<int64_t>(x.sizes().begin(), x.sizes().end()));
  if (x.numel() == 0) return y;
  rounding.x = x_in.const_data_ptr();
  rounding.y = y.mutable_data_ptr();
  const RoundRows run = round_rows_of(isa_of_index(level));
  // A thread is worth waking for some 32 Ki values.
  const int64_t grain = std::max<int64_t>(1, 32768 / rounding.k);
  share_out(x.numel() / rounding.k, grain, 1, [&](int64_t begin, int64_t end) { run(rounding, begin, end); });
  return y;
}

}  // namespace
}  // namespace qcompile

// `narrow`: every step is itself rounded to the dtype of x (ActivationQuant.arithmetic is "input").
STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def("native_round_floats(Tensor x, Tensor? scale, int kind, bool narrow, *, int level=-1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CPU, m) { m.impl("native_round_floats", TORCH_BOX(&qcompile::native_round_floats)); }
