// Runs every kernel of every level of this machine over edge shapes, with every buffer allocated at exactly its size, and
// compares with plain sums. Meant to be built with -fsanitize=address,undefined. Prints the number of products checked.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "common/half.h"
#include "cpu/linear.h"

using namespace qcompile;

namespace {

std::mt19937 numbers(7);

struct Packed {
  PackedShape shape;
  std::unique_ptr<uint8_t[]> bytes;
  PackedWeight weight;
};

void require(bool met, const char* what) {
  if (met) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

Packed make(int64_t n, int64_t k, int64_t group, int bits, bool zeros, ScaleKind kind) {
  Packed made;
  PackedShape& shape = made.shape;
  shape.n = n;
  shape.k = k;
  shape.group = group;
  shape.bits = bits;
  shape.has_zeros = zeros;
  shape.scale_kind = kind;
  const int64_t groups = shape.groups();
  std::vector<int8_t> codes(n * k), points(n * groups);
  for (auto& code : codes) code = static_cast<int8_t>(bits == 8 ? numbers() % 256 : zeros ? numbers() % 16 : numbers() % 16 - 8);
  for (auto& point : points) point = static_cast<int8_t>(bits == 8 ? numbers() % 256 : numbers() % 17);
  std::vector<uint8_t> scales(n * groups * shape.scale_bytes());
  for (int64_t i = 0; i < n * groups; ++i) {
    const float value = 1.0f + static_cast<float>(numbers() % 8) / 8.0f;
    const uint16_t half = kind == ScaleKind::bf16 ? float_to_bf16(value) : float_to_fp16(value);
    std::memcpy(&scales[i * shape.scale_bytes()], kind == ScaleKind::f32 ? static_cast<const void*>(&value) : &half, shape.scale_bytes());
  }
  made.bytes.reset(new uint8_t[shape.total_bytes()]);
  write_header(shape, made.bytes.get());
  const PackSource source = {codes.data(), scales.data(), kind, zeros ? points.data() : nullptr};
  for (int64_t block = 0; block < shape.blocks(); ++block)
    require(pack_blocks(shape, source, made.bytes.get(), block, block + 1) == -1, "codes in range");
  require(open_packed(made.bytes.get(), shape.total_bytes(), bits, &made.weight) == nullptr, "open what was packed");
  // The round trip.
  std::vector<int32_t> row(k), row_zeros(groups);
  std::vector<float> row_scales(groups);
  for (int64_t i = 0; i < n; ++i) {
    unpack_row(made.weight, i, row.data(), row_scales.data(), row_zeros.data());
    const int shift = bits == 4 && !zeros ? 8 : 0;
    for (int64_t j = 0; j < k; ++j) require(row[j] == codes[i * k + j] + shift, "codes survive packing");
    for (int64_t g = 0; g < groups; ++g) require(row_zeros[g] == (zeros ? points[i * groups + g] : shift), "zeros survive packing");
  }
  return made;
}

float value_at(const void* data, Dtype dtype, int64_t at) {
  if (dtype == Dtype::f32) return static_cast<const float*>(data)[at];
  const uint16_t half = static_cast<const uint16_t*>(data)[at];
  return dtype == Dtype::bf16 ? bf16_to_float(half) : fp16_to_float(half);
}

void check(const Packed& packed, const LinearKernel& kernel, Dtype dtype, int64_t m, bool permuted, const Activation& activation, bool rounds) {
  const PackedShape& shape = packed.shape;
  const int64_t width = dtype == Dtype::f32 ? 4 : 2, n = shape.n, k = shape.k;
  std::unique_ptr<uint8_t[]> x(new uint8_t[m * k * width]), y(new uint8_t[m * n * width]);
  for (int64_t i = 0; i < m * k; ++i) {
    const float value = static_cast<float>(static_cast<int>(numbers() % 17) - 8) / 8.0f;
    const uint16_t half = dtype == Dtype::bf16 ? float_to_bf16(value) : float_to_fp16(value);
    std::memcpy(&x[i * width], dtype == Dtype::f32 ? static_cast<const void*>(&value) : &half, width);
  }
  std::vector<int64_t> perm(k);
  for (int64_t i = 0; i < k; ++i) perm[i] = i;
  std::shuffle(perm.begin(), perm.end(), numbers);
  std::unique_ptr<float[]> bias(new float[n]);
  for (int64_t i = 0; i < n; ++i) bias[i] = static_cast<float>(numbers() % 5);
  const LinearInput input = {x.get(), dtype, m, k, permuted ? perm.data() : nullptr, activation};
  const LinearOutput output = {y.get(), n, bias.get()};
  const int64_t panels = kernel.panels(dtype, m);
  std::unique_ptr<uint8_t[]> prepared(new uint8_t[kernel.prepared_bytes(shape, dtype, m)]);
  for (int64_t panel = 0; panel < panels; ++panel) kernel.prepare(packed.weight, input, prepared.get(), panel, panel + 1);
  const int64_t middle = shape.blocks() / 2;
  kernel.run(packed.weight, input, prepared.get(), output, 0, middle);
  kernel.run(packed.weight, input, prepared.get(), output, middle, shape.blocks());
  std::vector<int32_t> codes(k), zeros(shape.groups());
  std::vector<float> scales(shape.groups());
  double error = 0, size = 1e-9;
  for (int64_t column = 0; column < n; ++column) {
    unpack_row(packed.weight, column, codes.data(), scales.data(), zeros.data());
    for (int64_t row = 0; row < m; ++row) {
      double sum = bias[column], terms = 0;
      for (int64_t j = 0; j < k; ++j) {
        const double w = (codes[j] - zeros[j / shape.group]) * static_cast<double>(scales[j / shape.group]);
        const double term = w * value_at(x.get(), dtype, row * k + (permuted ? perm[j] : j));
        sum += term;
        terms += term * term;
      }
      const double difference = value_at(y.get(), dtype, row * n + column) - sum;
      error += difference * difference;
      size += sum * sum + terms;
    }
  }
  const double most = rounds ? 0.02 : dtype == Dtype::f32 ? 1e-6 : dtype == Dtype::fp16 ? 6e-4 : 4e-3;
  if (std::sqrt(error / size) > most)
    std::fprintf(stderr, "%s n=%ld k=%ld group=%ld m=%ld: %g\n", kernel.name, n, k, shape.group, m, std::sqrt(error / size));
  require(std::sqrt(error / size) <= most, "close to the plain sum");
}

}  // namespace

int main() {
  constexpr int64_t kShapes[][3] = {{1, 1, 1}, {1, 7, 7}, {15, 9, 3}, {16, 32, 16}, {17, 33, 33}, {31, 40, 8}, {33, 100, 32}, {5, 530, 530}, {16, 1024, 128}};
  constexpr int64_t kRows[] = {1, 2, 3, 5, 6, 12, 13, 17, 25};
  long products = 0;
  for (const auto& of : kShapes) {
    for (const int bits : {4, 8}) {
      for (int variant = 0; variant < 3; ++variant) {
        const Packed packed = make(of[0], of[1], of[2], bits, variant == 1, static_cast<ScaleKind>(variant));
        for (const Isa isa : available_isas()) {
          for (const Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::f32}) {
            for (const bool rounds : {false, true}) {
              const Family family = bits == 4 ? (rounds ? Family::int4_a8 : Family::int4) : (rounds ? Family::int8 : Family::int8_a16);
              Activation activation;
              activation.rounding = static_cast<Rounding>(bits == 4 ? (variant == 2 ? 3 : 0) : variant);
              activation.scale = 1.0f / 64.0f;
              for (const int64_t m : kRows) {
                check(packed, linear_kernel(family, isa, dtype), dtype, m, m % 2 == 1, activation, rounds);
                ++products;
              }
            }
          }
        }
      }
    }
  }
  std::printf("%ld\n", products);
  return 0;
}
