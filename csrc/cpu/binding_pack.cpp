// The torch boundary of packing: checks, memory and threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

#include "common/checks.h"
#include "common/memory.h"
#include "cpu/packed.h"

namespace qcompile {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

ScaleKind scale_kind_of(ScalarType type) {
  return type == ScalarType::Float ? ScaleKind::f32 : type == ScalarType::Half ? ScaleKind::fp16 : ScaleKind::bf16;
}

PackedShape checked_shape(const char* op, int bits, const Tensor& codes, const Tensor& scales, int64_t group) {
  check_cpu(op, "codes", codes);
  check_dtype(op, "codes", codes, {ScalarType::Char});
  if (codes.dim() != 2 || codes.size(0) < 1 || codes.size(1) < 1)
    fail(op, "codes", "expected shape [N, K] with N and K of at least 1, got ", shape_text(codes));
  if (group < 1) fail(op, "group", "expected at least 1 (K for one group per output), got ", group);
  PackedShape shape;
  shape.n = codes.size(0);
  shape.k = codes.size(1);
  shape.group = std::min(group, shape.k);
  shape.bits = bits;
  if (bits == 8 && shape.group > 65536) fail(op, "group", "expected at most 65536 (sums are 32-bit integers), got ", shape.group);
  check_cpu(op, "scales", scales);
  check_dtype(op, "scales", scales, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  check_shape(op, "scales", scales, {shape.n, shape.groups()});
  shape.scale_kind = scale_kind_of(scales.scalar_type());
  return shape;
}

void check_zeros(const char* op, const PackedShape& shape, const Tensor& zeros) {
  check_cpu(op, "zeros", zeros);
  check_dtype(op, "zeros", zeros, {ScalarType::Char});
  check_shape(op, "zeros", zeros, {shape.n, shape.groups()});
}

void check_nibble_zeros(const char* op, const PackedShape& shape, const int8_t* zeros) {
  for (int64_t i = 0; i < shape.n * shape.groups(); ++i)
    if (zeros[i] < 0 || zeros[i] > 16)
      fail(op, "zeros", "expected 0 to 16, got ", static_cast<int>(zeros[i]), " at [", i / shape.groups(), ", ", i % shape.groups(), "]");
}

Tensor pack(const char* op, int bits, const Tensor& codes, const Tensor& scales, const std::optional<Tensor>& zeros, int64_t group) {
  PackedShape shape = checked_shape(op, bits, codes, scales, group);
  shape.has_zeros = zeros.has_value();
  const Tensor codes_in = torch::stable::contiguous(codes), scales_in = torch::stable::contiguous(scales);
  Tensor zeros_in = codes_in;
  PackSource source = {codes_in.const_data_ptr<int8_t>(), scales_in.const_data_ptr(), shape.scale_kind, nullptr};
  if (zeros.has_value()) {
    check_zeros(op, shape, *zeros);
    zeros_in = torch::stable::contiguous(*zeros);
    source.zeros = zeros_in.const_data_ptr<int8_t>();
    if (bits == 4) check_nibble_zeros(op, shape, source.zeros);
  }
  if (shape.scale_kind == ScaleKind::f32) {
    const int64_t wide = shape.total_bytes();
    shape.scale_kind = narrowest_kind(static_cast<const float*>(source.scales), scales_in.numel());
    shape.unused_bytes = wide - shape.used_bytes();
  }
  Tensor packed = torch::stable::new_empty(codes, {shape.total_bytes()}, ScalarType::Byte);
  uint8_t* const out = static_cast<uint8_t*>(packed.mutable_data_ptr());
  prefer_huge_pages(out, static_cast<size_t>(shape.total_bytes()));
  write_header(shape, out);
  std::memset(out + shape.used_bytes(), 0, static_cast<size_t>(shape.unused_bytes));
  std::atomic<int64_t> wrong{-1};
  const int64_t grain = std::max<int64_t>(1, 32768 / (shape.k * kBlock));
  torch::stable::parallel_for(0, shape.blocks(), grain, [&](int64_t begin, int64_t end) {
    const int64_t at = pack_blocks(shape, source, out, begin, end);
    if (at >= 0) wrong = at;
  });
  if (wrong >= 0)
    fail(op, "codes", zeros.has_value() ? "expected 0 to 15 (with zeros), got " : "expected -8 to 7 (without zeros), got ",
         static_cast<int>(source.codes[wrong]), " at [", wrong / shape.k, ", ", wrong % shape.k, "]");
  return packed;
}

Tensor native_int4_pack(const Tensor codes, const Tensor scales, const std::optional<Tensor> zeros, int64_t group) {
  return pack("native_int4_pack", 4, codes, scales, zeros, group);
}

Tensor native_int8_pack(const Tensor codes, const Tensor scales, const std::optional<Tensor> zeros, int64_t group) {
  return pack("native_int8_pack", 8, codes, scales, zeros, group);
}

}  // namespace
}  // namespace qcompile

STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def("native_int4_pack(Tensor codes, Tensor scales, Tensor? zeros, int group) -> Tensor");
  m.def("native_int8_pack(Tensor codes, Tensor scales, Tensor? zeros, int group) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CPU, m) {
  m.impl("native_int4_pack", TORCH_BOX(&qcompile::native_int4_pack));
  m.impl("native_int8_pack", TORCH_BOX(&qcompile::native_int8_pack));
}
