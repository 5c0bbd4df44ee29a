// The torch boundary of packing: checks, memory and threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <initializer_list>
#include <optional>

#include "common/checks.h"
#include "common/memory.h"
#include "cpu/packed.h"

namespace qcompile {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

ScaleKind scale_kind_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return ScaleKind::f32;
    case ScalarType::Half: return ScaleKind::fp16;
    case ScalarType::Float8_e4m3fn: return ScaleKind::e4m3;
    case ScalarType::Float8_e8m0fnu: return ScaleKind::e8m0;
    default: return ScaleKind::bf16;
  }
}

Values values_of(ScalarType codes, bool book) {
  if (codes == ScalarType::Float8_e4m3fn) return Values::e4m3;
  if (codes == ScalarType::Float8_e5m2) return Values::e5m2;
  return book ? Values::book : Values::integers;
}

// What is packed, as the operators are given it.
struct Given {
  const char* op;
  int bits;
  const Tensor& codes;
  const Tensor& scales;
  const std::optional<Tensor>& zeros;
  const std::optional<Tensor>& outer;
  const std::optional<Tensor>& book;
  int64_t group;
  bool float8 = false;  // codes are numbers
};

PackedShape checked_shape(const Given& given) {
  const char* const op = given.op;
  const Tensor &codes = given.codes, &scales = given.scales;
  const int64_t group = given.group;
  check_cpu(op, "codes", codes);
  if (given.float8)
    check_dtype(op, "codes", codes, {ScalarType::Float8_e4m3fn, ScalarType::Float8_e5m2});
  else
    check_dtype(op, "codes", codes, {ScalarType::Char});
  if (codes.dim() != 2 || codes.size(0) < 1 || codes.size(1) < 1)
    fail(op, "codes", "expected shape [N, K] with N and K of at least 1, got ", shape_text(codes));
  if (group < 1) fail(op, "group", "expected at least 1 (K for one group per output), got ", group);
  PackedShape shape;
  shape.n = codes.size(0);
  shape.k = codes.size(1);
  shape.group = std::min(group, shape.k);
  shape.bits = given.bits;
  shape.has_zeros = given.zeros.has_value();
  shape.values = values_of(codes.scalar_type(), given.book.has_value());
  shape.has_outer = given.outer.has_value();
  if (shape.has_sums() && shape.group > 65536) fail(op, "group", "expected at most 65536 (sums are 32-bit integers), got ", shape.group);
  check_cpu(op, "scales", scales);
  if (shape.values != Values::integers)
    check_dtype(op, "scales", scales,
                {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Float8_e4m3fn, ScalarType::Float8_e8m0fnu});
  else
    check_dtype(op, "scales", scales, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  shape.shared_scales = given.float8 && scales.dim() == 2 && scales.size(0) == shape.blocks() && scales.size(0) != shape.n;
  check_shape(op, "scales", scales, {shape.shared_scales ? shape.blocks() : shape.n, shape.groups()});
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

// The float32 values of an optional operand, of a given shape; null if it is not there. `kept` holds them.
const float* checked_floats(const char* op, const char* name, const std::optional<Tensor>& given, std::initializer_list<int64_t> shape,
                            Tensor* kept) {
  if (!given.has_value()) return nullptr;
  check_cpu(op, name, *given);
  check_dtype(op, name, *given, {ScalarType::Float});
  check_shape(op, name, *given, shape);
  *kept = torch::stable::contiguous(*given);
  return kept->const_data_ptr<float>();
}

// The flat index of the first number that is NaN or infinite, or -1.
int64_t first_special(const uint8_t* codes, int64_t count, Values values) {
  const uint8_t least = values == Values::e4m3 ? 0x7f : 0x7c;
  for (int64_t i = 0; i < count; ++i)
    if ((codes[i] & 0x7f) >= least) return i;
  return -1;
}

Tensor pack(const Given& given) {
  const char* const op = given.op;
  PackedShape shape = checked_shape(given);
  const Tensor codes_in = torch::stable::contiguous(given.codes), scales_in = torch::stable::contiguous(given.scales);
  Tensor zeros_in = codes_in, outer_in = codes_in, book_in = codes_in;
  PackSource source = {static_cast<const int8_t*>(codes_in.const_data_ptr()), scales_in.const_data_ptr(), shape.scale_kind, nullptr};
  if (given.zeros.has_value()) {
    check_zeros(op, shape, *given.zeros);
    zeros_in = torch::stable::contiguous(*given.zeros);
    source.zeros = zeros_in.const_data_ptr<int8_t>();
    if (given.bits == 4) check_nibble_zeros(op, shape, source.zeros);
  }
  source.outer = checked_floats(op, "outer", given.outer, {shape.n, 1}, &outer_in);
  source.book = checked_floats(op, "book", given.book, {kBookEntries}, &book_in);
  if (given.float8) {
    const int64_t at = first_special(reinterpret_cast<const uint8_t*>(source.codes), shape.n * shape.k, shape.values);
    if (at >= 0) fail(op, "codes", "expected finite numbers, got NaN or infinity at [", at / shape.k, ", ", at % shape.k, "]");
  }
  if (shape.scale_kind == ScaleKind::f32) {
    const int64_t wide = shape.total_bytes();
    shape.scale_kind = narrowest_kind(static_cast<const float*>(source.scales), scales_in.numel());
    shape.unused_bytes = wide - shape.used_bytes();
  }
  Tensor packed = torch::stable::new_empty(given.codes, {shape.total_bytes()}, ScalarType::Byte);
  uint8_t* const out = static_cast<uint8_t*>(packed.mutable_data_ptr());
  prefer_huge_pages(out, static_cast<size_t>(shape.total_bytes()));
  write_header(shape, source, out);
  std::memset(out + shape.used_bytes(), 0, static_cast<size_t>(shape.unused_bytes));
  std::atomic<int64_t> wrong{-1};
  const int64_t grain = std::max<int64_t>(1, 32768 / (shape.k * kBlock));
  torch::stable::parallel_for(0, shape.blocks(), grain, [&](int64_t begin, int64_t end) {
    const int64_t at = pack_blocks(shape, source, out, begin, end);
    if (at >= 0) wrong = at;
  });
  if (wrong >= 0)
    fail(op, "codes",
         shape.has_book() ? "expected 0 to 15 (of a code book), got "
                        : shape.has_zeros ? "expected 0 to 15 (with zeros), got " : "expected -8 to 7 (without zeros), got ",
         static_cast<int>(source.codes[wrong]), " at [", wrong / shape.k, ", ", wrong % shape.k, "]");
  return packed;
}

Tensor native_int4_pack(const Tensor codes, const Tensor scales, const std::optional<Tensor> zeros, int64_t group) {
  return pack({"native_int4_pack", 4, codes, scales, zeros, {}, {}, group});
}

Tensor native_int8_pack(const Tensor codes, const Tensor scales, const std::optional<Tensor> zeros, int64_t group) {
  return pack({"native_int8_pack", 8, codes, scales, zeros, {}, {}, group});
}

Tensor native_book4_pack(const Tensor codes, const Tensor scales, const std::optional<Tensor> outer, const Tensor book, int64_t group) {
  return pack({"native_book4_pack", 4, codes, scales, {}, outer, book, group});
}

Tensor native_fp8_pack(const Tensor codes, const Tensor scales, const std::optional<Tensor> outer, int64_t group) {
  return pack({"native_fp8_pack", 8, codes, scales, {}, outer, {}, group, true});
}

}  // namespace
}  // namespace qcompile

STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def("native_int4_pack(Tensor codes, Tensor scales, Tensor? zeros, int group) -> Tensor");
  m.def("native_int8_pack(Tensor codes, Tensor scales, Tensor? zeros, int group) -> Tensor");
  m.def("native_book4_pack(Tensor codes, Tensor scales, Tensor? outer, Tensor book, int group) -> Tensor");
  // scales [N, G], or [ceil(N / 16), G] where 16 outputs share them.
  m.def("native_fp8_pack(Tensor codes, Tensor scales, Tensor? outer, int group) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CPU, m) {
  m.impl("native_int4_pack", TORCH_BOX(&qcompile::native_int4_pack));
  m.impl("native_book4_pack", TORCH_BOX(&qcompile::native_book4_pack));
  m.impl("native_fp8_pack", TORCH_BOX(&qcompile::native_fp8_pack));
  m.impl("native_int8_pack", TORCH_BOX(&qcompile::native_int8_pack));
}
