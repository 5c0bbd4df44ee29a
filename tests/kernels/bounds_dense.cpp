// Runs every kernel for dense products of every level of this machine over edge shapes and compares with plain sums. Meant to be
// built with -fsanitize=address,undefined. Prints the number of products checked.
#include <cmath>

#include "cpu/dense.h"
#include "exact.h"

using namespace qcompile;

namespace {

// N, K: around the registers of every level and the four sums side by side.
constexpr int64_t kSizes[][2] = {{1, 1},   {3, 7},   {5, 16},   {4, 31},   {9, 33},  {8, 63},   {2, 64},
                                 {7, 65},  {3, 127}, {5, 128},  {17, 130}, {2, 257}, {33, 95},  {3, 1025}};

void check(int64_t n, int64_t k, int64_t m, Isa isa, Element element, bool biased) {
  const int64_t weight_stride = k + 3, y_stride = n + 1;
  const Bytes x = some_values(element, m * k), weight = some_values(element, (n - 1) * weight_stride + k);
  const Bytes bias = some_values(element, n), y = exactly(((m - 1) * y_stride + n) * bytes_of(element));
  const Dense dense = {m, n, k, element, x.get(), weight.get(), biased ? bias.get() : nullptr, y.get(), k, weight_stride, y_stride};
  const DenseKernel& kernel = dense_kernel(isa, element);
  const Bytes prepared = working(kernel.prepared_bytes(dense));
  kernel.prepare(dense, prepared.get());
  kernel.run(dense, prepared.get(), 0, n / 2);
  kernel.run(dense, prepared.get(), n / 2, n);
  double error = 0, size = 1e-9;
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t column = 0; column < n; ++column) {
      double sum = biased ? value_at(bias.get(), element, column) : 0.0;
      for (int64_t i = 0; i < k; ++i) {
        const double term = static_cast<double>(value_at(x.get(), element, row * k + i)) *
                            value_at(weight.get(), element, column * weight_stride + i);
        sum += term;
        size += term * term;
      }
      const double difference = value_at(y.get(), element, row * y_stride + column) - sum;
      error += difference * difference;
      size += sum * sum;
    }
  }
  const double most = element == Element::f32 ? 1e-6 : element == Element::fp16 ? 6e-4 : 4e-3;
  if (std::sqrt(error / size) > most) std::fprintf(stderr, "%s n=%ld k=%ld m=%ld: %g\n", kernel.name, n, k, m, std::sqrt(error / size));
  require(std::sqrt(error / size) <= most, "close to the plain sum");
}

}  // namespace

int main() {
  long products = 0;
  for (const auto& size : kSizes)
    for (const Isa isa : available_isas())
      for (const Element element : {Element::bf16, Element::fp16, Element::f32})
        for (int64_t m = 1; m <= kMostDenseRows; ++m)
          for (const bool biased : {false, true}) check(size[0], size[1], m, isa, element, biased), ++products;
  std::printf("%ld\n", products);
  return 0;
}
