// One interface for all our quantized products, y = act(x) @ W.T + bias, without torch; and the table of implementations.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "cpu/packed.h"

namespace qcompile {

enum class Dtype : int { bf16 = 0, fp16 = 1, f32 = 2 };

// What is multiplied: see the file of each body.
enum class Family : int {
  int4 = 0,      // 4-bit weights, x as it is
  int8_a16 = 1,  // 8-bit weights, x as it is
  int8 = 2,      // 8-bit weights, x rounded to 8 bit
  int4_a8 = 3,   // 4-bit weights, x rounded to 8 bit
  book4 = 4,     // 4-bit codes of a code book, x as it is
  e4m3 = 5,      // 8-bit numbers, x as it is
  e5m2 = 6,
};

// How x is rounded (the formulas are those of ActivationQuant in qcompile/activations.py).
enum class Rounding : int {
  token = 0,             // symmetric, one scale for each row
  token_asymmetric = 1,  // one scale and zero point for each row
  tensor = 2,            // one given scale and zero point
  group = 3,             // symmetric, one scale for each row and group of the weight
};

struct Activation {
  Rounding rounding = Rounding::token;
  float divisor = 127.0f;  // of token and group: scale = max|x| / divisor
  float low = -127.0f;     // least code of token and group
  float scale = 1.0f, zero = 0.0f;  // of tensor
  Dtype steps = Dtype::f32;         // every step of the arithmetic is rounded to this dtype: float32, or that of x
};

struct LinearInput {
  const void* x;        // [m, k] of `dtype`, rows `stride` elements apart
  Dtype dtype;
  int64_t m, stride;
  const int64_t* perm;  // null, or k indices: position j of the weight reads x[:, perm[j]]
  Activation activation;
};

struct LinearOutput {
  void* y;             // [m, n] of the input's dtype, rows `stride` elements apart
  int64_t stride;
  const float* bias;   // null or [n]
};

// Of several panels each goes over so many blocks before the next blocks: codes come from memory once and from L2 afterwards.
template <class Shape>
inline int64_t blocks_at_once(const Shape& shape) {
  constexpr int64_t kKeptBytes = 384 << 10;
  const int64_t blocks = kKeptBytes / (shape.lines() * kLineBytes);
  return blocks > 1 ? blocks : 1;
}

// One implementation. A caller splits m into chunks of at most max_rows, prepares the input of a chunk once (ranges of panels, in
// parallel if it likes) and then runs ranges of blocks (in parallel).
template <class Weight>
struct LinearKernelOf {
  using Shape = decltype(Weight::shape);
  const char* name;
  // Rows of one preparation: bounded so that the prepared input stays in cache.
  int64_t (*max_rows)(const Shape& shape);
  int64_t (*prepared_bytes)(const Shape& shape, Dtype dtype, int64_t m);
  int64_t (*panels)(Dtype dtype, int64_t m);
  void (*prepare)(const Weight& weight, const LinearInput& input, void* prepared, int64_t begin, int64_t end);
  void (*run)(const Weight& weight, const LinearInput& input, const void* prepared, const LinearOutput& output, int64_t begin,
              int64_t end);
  // The one for x of `many_rows` and more, where there is one: measured with bench/gemm.py.
  const LinearKernelOf* many = nullptr;
  int64_t many_rows = 0;
};
using LinearKernel = LinearKernelOf<PackedWeight>;

// What one source file compiled for an ISA provides; null where it leaves a family to others.
struct LevelKernels {
  const LinearKernel* int4;
  const LinearKernel* int8_a16;
  const LinearKernel* int8;
  const LinearKernel* int4_a8;
  const LinearKernel* book4;
  const LinearKernel* e4m3;
  const LinearKernel* e5m2;
  // The best that can be: operations (a product and a sum count two) done in `rounds` rounds, by one thread.
  double (*most_wide)(int64_t rounds);
  double (*most_bytes)(int64_t rounds);
  uint32_t (*read)(const uint8_t* from, int64_t bytes);
};
extern const LevelKernels kGenericKernels, kAvx2Kernels, kAvx2VnniKernels, kAvx2VnniEvexKernels, kAvx512Kernels, kAvx512VnniKernels,
    kAvx512VbmiKernels, kAvx512Bf16Kernels, kAvx512Bf16VbmiKernels, kNeonKernels, kNeonDotprodKernels, kNeonI8mmKernels, kNeonBf16Kernels;

// The implementation that a level uses for a family and a dtype of x. narrow: bfloat16 holds what the weight is decoded to.
const LinearKernel& linear_kernel(Family family, Isa isa, Dtype dtype, bool narrow = true);

// The same for the three loops that do nothing but multiply x as it is (bfloat16 where the level has it), bytes, or read.
double (*most_wide_of(Isa isa))(int64_t rounds);
double (*most_bytes_of(Isa isa))(int64_t rounds);
uint32_t (*read_of(Isa isa))(const uint8_t* from, int64_t bytes);

}  // namespace qcompile
