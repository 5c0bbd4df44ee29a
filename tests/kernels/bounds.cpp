// Runs every kernel for quantized products of every level of this machine over edge shapes and compares with plain sums. Meant to
// be built with -fsanitize=address,undefined. Prints the number of products checked.
#include "products.h"

#if defined(__x86_64__)
#include "vnni_trap.h"
#include "wide_strips.h"
#endif

using namespace qcompile;

namespace {

// Those of every level, best first.
std::vector<const LinearKernel*> kernels(const PackedWeight& weight, Dtype dtype, bool rounds) {
  const int bits = weight.shape.bits;
  const Family integers = bits == 4 ? (rounds ? Family::int4_a8 : Family::int4) : (rounds ? Family::int8 : Family::int8_a16);
  Family family = integers;
  switch (weight.shape.values) {
    case Values::book: family = Family::book4; break;
    case Values::e4m3: family = Family::e4m3; break;
    case Values::e5m2: family = Family::e5m2; break;
    case Values::integers: break;
  }
  std::vector<const LinearKernel*> all;
  for (const Isa isa : available_isas()) {
    all.push_back(&linear_kernel(family, isa, dtype, has_bf16_book(weight)));
    if (all.back()->many != nullptr) all.push_back(all.back()->many);
  }
#if defined(__x86_64__)
  if (!rounds) all.push_back(&wide_kernel(weight.shape.values, bits));
  // Its twin stands for it at the level "avx2_vnni" of a processor that has no AVX-VNNI. Once, as each instruction is a trap.
  if (cpu_features().avx2 && rounds && dtype == Dtype::f32) all.push_back(bits == 4 ? kAvx2VnniKernels.int4_a8 : kAvx2VnniKernels.int8);
#endif
  return all;
}

long check(const Packed& packed, Dtype dtype, bool rounds, int64_t m, const Activation& activation) {
  const PackedShape& shape = packed.shape;
  Product product(packed, dtype, m, activation);
  product.plain_sums();
  long checked = 0;
  for (const LinearKernel* kernel : kernels(packed.weight, dtype, rounds)) {
    const double error = product.error(product.run(*kernel).get()), most = rounds ? 0.02 : product.tolerance();
    if (error > most)
      std::fprintf(stderr, "%s n=%ld k=%ld group=%ld m=%ld: %g\n", kernel->name, shape.n, shape.k, shape.group, m, error);
    require(error <= most, "close to the plain sum");
    ++checked;
  }
  return checked;
}

}  // namespace

int main() {
#if defined(__x86_64__)
  if (cpu_features().avx2) qcompile_trap::install();
#endif
  long products = 0;
  // One that bfloat16 holds, and one that it does not.
  float books[2][kBookEntries];
  for (int i = 0; i < kBookEntries; ++i) {
    books[0][i] = static_cast<float>(i - 8);
    books[1][i] = static_cast<float>(i - 8) / 7.0f;
  }
  for (const auto& of : kShapes) {
    for (const int bits : {4, 8}) {
      for (int variant = 0; variant < 3; ++variant) {
        const Packed packed = make(of[0], of[1], of[2], bits, variant == 1, static_cast<ScaleKind>(variant));
        for (const Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::f32})
          for (const bool rounds : {false, true})
            for (const int64_t m : kRows) products += check(packed, dtype, rounds, m, activation_of(bits, variant));
      }
    }
  }
  for (const auto& of : kShapes)
    for (const auto& book : books)
      for (uint32_t kind = 0; kind < kScaleKinds; ++kind) {
        const Packed packed = make(of[0], of[1], of[2], 4, false, static_cast<ScaleKind>(kind), book);
        for (const Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::f32})
          for (const int64_t m : kRows) products += check(packed, dtype, false, m, {});
      }
  for (const auto& of : kShapes)
    for (const Values values : {Values::e4m3, Values::e5m2})
      for (uint32_t kind = 0; kind < kScaleKinds; ++kind) {
        const Packed packed = make(of[0], of[1], of[2], 8, false, static_cast<ScaleKind>(kind), nullptr, values);
        for (const Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::f32})
          for (const int64_t m : kRows) products += check(packed, dtype, false, m, {});
      }
  std::printf("%ld\n", products);
  return 0;
}
