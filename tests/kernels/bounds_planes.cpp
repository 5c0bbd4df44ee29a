// Runs the kernels for codes at their own width of every level of this machine over edge shapes and compares with plain sums. Meant to
// be built with -fsanitize=address,undefined. Prints the number of products checked.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "cpu/planes_kernels.h"
#include "exact.h"

#if defined(__x86_64__)
#include "wide_strips.h"
#endif

using namespace qcompile;

namespace {

// N, K, group, outer group: around the block of 16 outputs, the half tiles of 16 values, runs of 128, and chunks of 16 groups.
constexpr int64_t kShapes[][4] = {{1, 1, 1, 1},       {15, 9, 3, 6},      {16, 32, 16, 32},     {17, 100, 32, 64},
                                  {5, 530, 530, 530}, {33, 544, 32, 256}, {16, 1100, 48, 1100}, {3, 290, 8, 64}};
constexpr int64_t kRows[] = {1, 2, 3, 5, 13, 25};

// Which parts a weight has: the kind of scales, and whether there are zero points and offsets.
struct Variant {
  NumberKind scales;
  bool is_signed;
  int inner_bits;
  bool zeros, offsets;
};
constexpr Variant kVariants[] = {{NumberKind::f32, false, 0, false, false},  {NumberKind::bf16, false, 0, true, false},
                                 {NumberKind::fp16, false, 0, false, true},  {NumberKind::inner, false, 6, false, true},
                                 {NumberKind::inner, true, 8, true, false},  {NumberKind::inner, false, 4, true, true}};

struct Planes {
  Bytes bytes;
  PlanesWeight weight;
};

// Numbers of a kind, between 1 and 2 or any integers of so many bits.
Bytes some_numbers(NumberKind kind, int64_t count, const Variant& of) {
  Bytes made = exactly(count * std::max<int64_t>(1, PlanesShape::bytes_of(kind)));
  for (int64_t i = 0; i < count; ++i) {
    const float value = 1.0f + static_cast<float>(numbers() % 8) / 8.0f;
    if (kind == NumberKind::inner)
      made[i] = static_cast<uint8_t>(numbers() % (1u << of.inner_bits) - (of.is_signed ? 1u << (of.inner_bits - 1) : 0u));
    else if (kind == NumberKind::f32)
      std::memcpy(made.get() + i * 4, &value, 4);
    else
      made.as<uint16_t>()[i] = kind == NumberKind::bf16 ? float_to_bf16(value) : float_to_fp16(value);
  }
  return made;
}

Planes make(const int64_t (&of)[4], int bits, const Variant& variant) {
  PlanesShape shape;
  shape.n = of[0];
  shape.k = of[1];
  shape.group = of[2];
  shape.outer_group = of[3];
  shape.bits = bits;
  const bool inner = variant.scales == NumberKind::inner, is_signed = bits < 8 && !variant.zeros && !variant.offsets;
  shape.inner_bits = variant.inner_bits;
  shape.scales = variant.scales;
  shape.offsets = variant.offsets ? variant.scales : NumberKind::none;
  shape.outer = inner ? NumberKind::fp16 : NumberKind::none;
  shape.outer_offset = inner && variant.offsets ? NumberKind::f32 : NumberKind::none;
  shape.flags = static_cast<uint8_t>((variant.zeros ? kPlanesZeros : 0) | (is_signed ? kSignedCodes : 0) |
                                     (variant.is_signed ? kSignedScales | (variant.offsets ? kSignedOffsets : 0) : 0));
  const int64_t count = shape.n * shape.groups(), outers = shape.n * shape.outer_groups();
  const int least = bits == 8 ? -128 : -shape.implied_zero();
  const Bytes codes = exactly(shape.n * shape.k), zeros = exactly(count), scales = some_numbers(shape.scales, count, variant),
              offsets = some_numbers(shape.scales, count, variant), outer = some_numbers(NumberKind::fp16, outers, variant),
              outer_offset = some_numbers(NumberKind::f32, outers, variant);
  for (int64_t i = 0; i < shape.n * shape.k; ++i) codes[i] = static_cast<uint8_t>(least + static_cast<int>(numbers() % (1u << bits)));
  for (int64_t i = 0; i < count; ++i) zeros[i] = static_cast<uint8_t>((bits == 8 ? -128 : 0) + static_cast<int>(numbers() % (1u << bits)));
  PlanesSource source = {codes.as<int8_t>(), variant.zeros ? zeros.as<int8_t>() : nullptr, {scales.get(), shape.scales, variant.is_signed}, {}, {}, {}};
  if (variant.offsets) source.offsets = {offsets.get(), shape.offsets, variant.is_signed};
  if (inner) source.outer = {outer.get(), shape.outer, false};
  if (inner && variant.offsets) source.outer_offset = {outer_offset.get(), shape.outer_offset, false};
  Planes made = {exactly(shape.total_bytes()), {}};
  write_planes_header(shape, made.bytes.get());
  for (int64_t block = 0; block < shape.blocks(); ++block)
    require(pack_planes(shape, source, made.bytes.get(), block, block + 1) == -1, "codes in range");
  require(open_planes(made.bytes.get(), shape.total_bytes(), &made.weight) == nullptr, "open what was packed");
  // The round trip.
  std::vector<int32_t> row(shape.k), row_zeros(shape.groups());
  std::vector<double> row_scales(shape.groups()), row_offsets(shape.groups());
  for (int64_t i = 0; i < shape.n; ++i) {
    unpack_planes_row(made.weight, i, row.data(), row_scales.data(), row_zeros.data(), row_offsets.data());
    for (int64_t j = 0; j < shape.k; ++j) require(row[j] == codes.as<int8_t>()[i * shape.k + j] + shape.implied_zero(), "codes survive packing");
  }
  return made;
}

int64_t width_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// In two pieces, as two threads would do it.
Bytes run(const PlanesKernel& kernel, const PlanesWeight& weight, const LinearInput& input, const float* bias) {
  const PlanesShape& shape = weight.shape;
  Bytes y = exactly(input.m * shape.n * width_of(input.dtype));
  const LinearOutput output = {y.get(), shape.n, bias};
  const Bytes prepared = exactly(kernel.prepared_bytes(shape, input.dtype, input.m));
  const int64_t panels = kernel.panels(input.dtype, input.m), middle = shape.blocks() / 2;
  for (int64_t panel = 0; panel < panels; ++panel) kernel.prepare(weight, input, prepared.get(), panel, panel + 1);
  kernel.run(weight, input, prepared.get(), output, 0, middle);
  kernel.run(weight, input, prepared.get(), output, middle, shape.blocks());
  return y;
}

long check(const Planes& planes, Dtype dtype, int64_t m) {
  const PlanesShape& shape = planes.weight.shape;
  const int64_t n = shape.n, k = shape.k;
  const Bytes x = some_values(dtype, m * k), bias = some_values(Dtype::f32, n), order = exactly(k * 8);
  int64_t* const perm = order.as<int64_t>();
  std::iota(perm, perm + k, 0);
  if (m % 2 == 1) std::shuffle(perm, perm + k, numbers);
  std::vector<int32_t> codes(k), zeros(shape.groups());
  std::vector<double> scales(shape.groups()), offsets(shape.groups()), sums;
  double size = 1e-9;
  for (int64_t column = 0; column < n; ++column) {
    unpack_planes_row(planes.weight, column, codes.data(), scales.data(), zeros.data(), offsets.data());
    for (int64_t row = 0; row < m; ++row) {
      double sum = bias.as<float>()[column];
      for (int64_t j = 0; j < k; ++j) {
        const int64_t g = j / shape.group;
        const double value = value_at(x.get(), dtype, row * k + perm[j]), term = (codes[j] + std::abs(zeros[g])) * scales[g] * value;
        sum += ((codes[j] - zeros[g]) * scales[g] + offsets[g]) * value;
        size += term * term + offsets[g] * offsets[g] * value * value;
      }
      sums.push_back(sum);
      size += sum * sum;
    }
  }
  const double most = dtype == Dtype::f32 ? 1e-6 : dtype == Dtype::fp16 ? 6e-4 : 4e-3;
  long checked = 0;
  std::vector<const PlanesKernel*> kernels;
  for (const Isa isa : available_isas()) {
    kernels.push_back(&planes_kernel(shape.bits, isa, dtype));
    if (kernels.back()->many != nullptr) kernels.push_back(kernels.back()->many);
  }
#if defined(__x86_64__)
  kernels.push_back(&wide_planes_kernel(shape.bits));
#endif
  const LinearInput input = {x.get(), dtype, m, k, m % 2 == 1 ? perm : nullptr, {}};
  for (const PlanesKernel* kernel : kernels) {
    const Bytes y = run(*kernel, planes.weight, input, bias.as<float>());
    double total = 0;
    for (int64_t i = 0; i < m * n; ++i) {
      const double got = value_at(y.get(), dtype, i % m * n + i / m);
      if (dtype == Dtype::fp16 && std::abs(sums[i]) > 65000.0) continue;  // overflows
      total += (got - sums[i]) * (got - sums[i]);
    }
    const double error = std::sqrt(total / size);
    if (!(error <= most)) std::fprintf(stderr, "%s n=%ld k=%ld group=%ld m=%ld: %g\n", kernel->name, n, k, shape.group, m, error);
    require(error <= most, "close to the plain sum");
    ++checked;
  }
  return checked;
}

}  // namespace

int main() {
  long products = 0;
  for (const auto& of : kShapes)
    for (int bits = 1; bits <= 8; ++bits)
      for (const Variant& variant : kVariants) {
        const Planes planes = make(of, bits, variant);
        int turn = bits;
        for (const Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::f32})
          for (int i = 0; i < 2; ++i) products += check(planes, dtype, kRows[turn++ % 6]);
      }
  std::printf("%ld\n", products);
  return 0;
}
