// The torch boundary of codes at their own width: checks, memory and threads.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstring>

#include "cpu/binding_product.h"
#include "cpu/planes_kernels.h"

namespace qcompile {
namespace {

constexpr const char* kPack = "native_planes_pack";
constexpr const char* kLinear = "native_planes_linear";

NumberKind kind_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return NumberKind::f32;
    case ScalarType::Half: return NumberKind::fp16;
    case ScalarType::BFloat16: return NumberKind::bf16;
    default: return NumberKind::inner;
  }
}

// An optional operand, of a given shape, contiguous in `kept`; `integers`: whether it may be bytes.
Numbers checked_numbers(const char* name, const MaybeTensor& given, int64_t n, int64_t columns, bool integers, Tensor* kept) {
  if (!given.has_value()) return {};
  check_cpu(kPack, name, *given);
  if (integers)
    check_dtype(kPack, name, *given, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Char, ScalarType::Byte});
  else
    check_dtype(kPack, name, *given, {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
  check_shape(kPack, name, *given, {n, columns});
  *kept = torch::stable::contiguous(*given);
  return {kept->const_data_ptr(), kind_of(kept->scalar_type()), kept->scalar_type() == ScalarType::Char};
}

// Integers of the inner level fit its bits.
void check_inner(const char* name, const Numbers& numbers, int64_t count, int64_t bits) {
  if (numbers.kind != NumberKind::inner) return;
  const int least = numbers.is_signed ? -(1 << (bits - 1)) : 0, most = least + (1 << bits) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const int value = static_cast<int>(numbers.at(i));
    if (value < least || value > most) fail(kPack, name, "expected ", least, " to ", most, " (inner_bits is ", bits, "), got ", value);
  }
}

void check_zeros(const PlanesShape& shape, const int8_t* zeros) {
  if (shape.bits == 8) return;
  const int most = 1 << shape.bits;
  for (int64_t i = 0; i < shape.n * shape.groups(); ++i)
    if (static_cast<uint8_t>(zeros[i]) > most)
      fail(kPack, "zeros", "expected 0 to ", most, ", got ", static_cast<int>(zeros[i]), " at [", i / shape.groups(), ", ", i % shape.groups(), "]");
}

PlanesShape checked_shape(const Tensor& codes, int64_t bits, int64_t group, int64_t outer_group) {
  check_cpu(kPack, "codes", codes);
  check_dtype(kPack, "codes", codes, {ScalarType::Char});
  if (codes.dim() != 2 || codes.size(0) < 1 || codes.size(1) < 1)
    fail(kPack, "codes", "expected shape [N, K] with N and K of at least 1, got ", shape_text(codes));
  if (bits < 1 || bits > 8) fail(kPack, "bits", "expected 1 to 8, got ", bits);
  if (group < 1) fail(kPack, "group", "expected at least 1 (K for one group per output), got ", group);
  PlanesShape shape;
  shape.n = codes.size(0);
  shape.k = codes.size(1);
  shape.bits = static_cast<int>(bits);
  shape.group = std::min(group, shape.k);
  shape.outer_group = std::min(outer_group, shape.k);
  if (outer_group < group || (shape.outer_group != shape.k && outer_group % group != 0))
    fail(kPack, "outer_group", "expected a multiple of group, ", group, ", or K, got ", outer_group);
  return shape;
}

// float32 numbers become narrower where that is exact, in the room of float32, so that the size follows from shapes and dtypes alone.
void narrow(PlanesShape* shape, const PlanesSource& source) {
  const int64_t wide = shape->total_bytes(), groups = shape->n * shape->groups(), outer = shape->n * shape->outer_groups();
  shape->scales = narrowest_of(source.scales, groups);
  shape->offsets = narrowest_of(source.offsets, groups);
  shape->outer = narrowest_of(source.outer, outer);
  shape->outer_offset = narrowest_of(source.outer_offset, outer);
  shape->unused_bytes = wide - shape->used_bytes();
}

void check_levels(const PlanesSource& source, int64_t inner_bits) {
  const bool inner = source.scales.kind == NumberKind::inner || source.offsets.kind == NumberKind::inner;
  if (source.scales.kind == NumberKind::inner && source.outer.kind == NumberKind::none)
    fail(kPack, "outer", "expected a tensor (the scales are integers), got None");
  if (source.offsets.kind == NumberKind::inner && source.outer_offset.kind == NumberKind::none)
    fail(kPack, "outer_offset", "expected a tensor (the offsets are integers), got None");
  if (source.offsets.kind == NumberKind::none && source.outer_offset.kind != NumberKind::none)
    fail(kPack, "outer_offset", "expected None (there are no offsets), got a tensor");
  if (inner ? inner_bits != 4 && inner_bits != 6 && inner_bits != 8 : inner_bits != 0)
    fail(kPack, "inner_bits", inner ? "expected 4, 6 or 8, got " : "expected 0 (neither scales nor offsets are integers), got ", inner_bits);
}

Tensor native_planes_pack(const Tensor codes, const Tensor scales, const MaybeTensor zeros, const MaybeTensor offsets,
                          const MaybeTensor outer, const MaybeTensor outer_offset, int64_t bits, int64_t group, int64_t outer_group,
                          int64_t inner_bits) {
  PlanesShape shape = checked_shape(codes, bits, group, outer_group);
  const int64_t n = shape.n, groups = shape.groups(), outer_groups = shape.outer_groups();
  const Tensor codes_in = torch::stable::contiguous(codes);
  Tensor kept[5] = {codes_in, codes_in, codes_in, codes_in, codes_in};
  PlanesSource source = {};
  source.codes = codes_in.const_data_ptr<int8_t>();
  source.scales = checked_numbers("scales", scales, n, groups, true, &kept[0]);
  source.offsets = checked_numbers("offsets", offsets, n, groups, true, &kept[1]);
  source.outer = checked_numbers("outer", outer, n, outer_groups, false, &kept[2]);
  source.outer_offset = checked_numbers("outer_offset", outer_offset, n, outer_groups, false, &kept[3]);
  check_levels(source, inner_bits);
  check_inner("scales", source.scales, n * groups, inner_bits);
  check_inner("offsets", source.offsets, n * groups, inner_bits);
  if (zeros.has_value()) {
    check_cpu(kPack, "zeros", *zeros);
    check_dtype(kPack, "zeros", *zeros, {ScalarType::Char});
    check_shape(kPack, "zeros", *zeros, {n, groups});
    kept[4] = torch::stable::contiguous(*zeros);
    source.zeros = kept[4].const_data_ptr<int8_t>();
    check_zeros(shape, source.zeros);
  }
  shape.scales = source.scales.kind;
  shape.offsets = source.offsets.kind;
  shape.outer = source.outer.kind;
  shape.outer_offset = source.outer_offset.kind;
  shape.inner_bits = static_cast<int>(inner_bits);
  const bool is_signed = shape.bits < 8 && !zeros.has_value() && !offsets.has_value();
  shape.flags = static_cast<uint8_t>((zeros.has_value() ? kPlanesZeros : 0) | (is_signed ? kSignedCodes : 0) |
                                     (source.scales.is_signed ? kSignedScales : 0) | (source.offsets.is_signed ? kSignedOffsets : 0));
  narrow(&shape, source);
  Tensor packed = torch::stable::new_empty(codes, {shape.total_bytes()}, ScalarType::Byte);
  uint8_t* const out = static_cast<uint8_t*>(packed.mutable_data_ptr());
  prefer_huge_pages(out, static_cast<size_t>(shape.total_bytes()));
  write_planes_header(shape, out);
  std::memset(out + shape.used_bytes(), 0, static_cast<size_t>(shape.unused_bytes));
  std::atomic<int64_t> wrong{-1};
  const int64_t grain = std::max<int64_t>(1, 32768 / (shape.k * kBlock));
  torch::stable::parallel_for(0, shape.blocks(), grain, [&](int64_t begin, int64_t end) {
    const int64_t at = pack_planes(shape, source, out, begin, end);
    if (at >= 0) wrong = at;
  });
  if (wrong >= 0) {
    const int least = shape.bits == 8 ? -128 : -shape.implied_zero();
    fail(kPack, "codes", "expected ", least, " to ", least + (1 << shape.bits) - 1,
         is_signed ? " (without zeros and offsets), got " : " (with zeros or offsets), got ", static_cast<int>(source.codes[wrong]), " at [",
         wrong / shape.k, ", ", wrong % shape.k, "]");
  }
  return packed;
}

Tensor native_planes_linear(const Tensor x, const Tensor packed, const MaybeTensor perm, const MaybeTensor bias, int64_t n, int64_t k,
                            int64_t group, int64_t bits, int64_t level) {
  const ProductCall call = {kLinear, x, perm, bias, n, k};
  check_x(call);
  check_cpu(kLinear, "packed", packed);
  check_dtype(kLinear, "packed", packed, {ScalarType::Byte});
  if (packed.dim() != 1) fail(kLinear, "packed", "expected the 1-D tensor of ", kPack, ", got shape ", shape_text(packed));
  check_contiguous(kLinear, "packed", packed);
  PlanesWeight weight;
  const char* const problem = open_planes(static_cast<const uint8_t*>(packed.const_data_ptr()), packed.numel(), &weight);
  if (problem != nullptr) fail(kLinear, "packed", "expected a tensor of ", kPack, ", but ", problem);
  const PlanesShape& shape = weight.shape;
  if (shape.n != n || shape.k != k || shape.group != std::min(group, k) || shape.bits != bits)
    fail(kLinear, "packed", "expected a weight of n=", n, ", k=", k, ", group=", group, ", bits=", bits, ", got one of n=", shape.n,
         ", k=", shape.k, ", group=", shape.group, ", bits=", shape.bits);
  return run_product(call, weight, planes_kernel(shape.bits, product_isa_of_index(level), dtype_of(x.scalar_type())), {});
}

}  // namespace
}  // namespace qcompile

// `level` is for tests: an index of native_isa_levels(), -1 is the level of this process.
STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def(
      "native_planes_pack(Tensor codes, Tensor scales, Tensor? zeros, Tensor? offsets, Tensor? outer, Tensor? outer_offset, int bits, "
      "int group, int outer_group, int inner_bits) -> Tensor");
  m.def(
      "native_planes_linear(Tensor x, Tensor packed, Tensor? perm, Tensor? bias, int n, int k, int group, int bits, *, int level=-1) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CPU, m) {
  m.impl("native_planes_pack", TORCH_BOX(&qcompile::native_planes_pack));
  m.impl("native_planes_linear", TORCH_BOX(&qcompile::native_planes_linear));
}
