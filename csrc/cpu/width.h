// Vectors of QCOMPILE_WIDTH lanes in the compiler's own notation, which every ISA understands. Included by every file that is
// compiled for an ISA; internal linkage throughout, so that no code of one ISA can stand in for another's.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

// Before a loop over rows or vectors: an index that is no constant would put the sums into memory, and GCC 12 keeps an array in
// registers only if the loops over it are gone early.
#if defined(__clang__)
#define QCOMPILE_UNROLL _Pragma("unroll 32")
#else
#define QCOMPILE_UNROLL _Pragma("GCC unroll 32")
#endif

namespace qcompile {
namespace {

constexpr int kWidth = QCOMPILE_WIDTH;
#if defined(__aarch64__) || defined(__AVX512F__)
[[maybe_unused]] constexpr int kRegisters = 32;
#else
[[maybe_unused]] constexpr int kRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));

[[maybe_unused]] inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Vector>
inline Vector load(const void* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class To, class From>
inline To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

#if defined(__aarch64__)
// sum + a * b[Lane], rounded once.
template <int Lane>
inline Floats add_product(const Floats& sum, const Floats& a, float32x4_t b) {
  static_assert(kWidth == 4, "a vector of Advanced SIMD");
  return (Floats)vfmaq_laneq_f32((float32x4_t)sum, (float32x4_t)a, b, Lane);
}
#endif

// A difference, because 0 + value would be an addition that the compiler must keep (for the sake of -0).
inline Floats all(float value) { return value - Floats{}; }

}  // namespace
}  // namespace qcompile
