// What the machine can do at most, for the limits that benchmarks and the cost model divide by: reading memory, products of
// floats, of pairs and of bytes. Each loop does nothing else.
#pragma once

#include "cpu/vectors.h"

namespace qcompile {
namespace {

constexpr int kProbeSums = 12;  // enough to hide the latency of the multipliers

constexpr int64_t kProbeAhead = 1024;  // bytes; a single thread reads a fifth less with 4096

// The XOR of all 32-bit words of `bytes` bytes, whole multiples of 512.
[[maybe_unused]] uint32_t probe_read(const uint8_t* from, int64_t bytes) {
  Words sum[4] = {};
  for (int64_t at = 0; at + 512 <= bytes; at += 512) {
    for (int64_t line = 0; line < 512; line += 64) __builtin_prefetch(from + at + line + kProbeAhead);
    for (int64_t i = 0; i < 512; i += 4 * static_cast<int64_t>(sizeof(Words)))
      for (int j = 0; j < 4; ++j) sum[j] ^= load<Words>(from + at + i + j * static_cast<int64_t>(sizeof(Words)));
  }
  const Words all_sums = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  uint32_t result = 0;
  for (int i = 0; i < kWidth; ++i) result ^= all_sums[i];
  return result;
}

// A step takes a sum one further, from itself and two constants, in such a way that no part of it can be done beforehand.
template <class Vector, class Step>
double probe_multiply(int64_t rounds, double operations_of_a_step, const Step& step) {
  Vector sums[kProbeSums];
  QCOMPILE_UNROLL for (int i = 0; i < kProbeSums; ++i) sums[i] = Vector{} + static_cast<int8_t>(i + 1);  // equal sums would be computed once
  const Vector first = Vector{} + 1, second = Vector{} + 2;
  for (int64_t round = 0; round < rounds; ++round) {
    QCOMPILE_UNROLL for (int i = 0; i < kProbeSums; ++i) sums[i] = step(sums[i], first, second);
  }
  Vector all_sums = Vector{};
  QCOMPILE_UNROLL for (int i = 0; i < kProbeSums; ++i) all_sums += sums[i];
  __asm__ volatile("" : : "m"(all_sums));
  return static_cast<double>(rounds) * kProbeSums * operations_of_a_step;
}

[[maybe_unused]] double probe_floats(int64_t rounds) {
  return probe_multiply<Floats>(rounds, 2.0 * kWidth, [](Floats sum, Floats a, Floats b) __attribute__((always_inline)) { return sum * a + b; });
}

}  // namespace
}  // namespace qcompile
