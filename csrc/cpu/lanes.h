// What attention and dense products do with vectors of floats: reading elements, transposition, sums over lanes, exp.
#pragma once

#include <utility>

#include "cpu/element.h"
#include "cpu/width.h"

namespace qcompile {
namespace {

typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));

[[maybe_unused]] inline int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

using Lanes = std::make_integer_sequence<int, kWidth>;

inline void store(void* to, const Floats& value) { std::memcpy(to, &value, sizeof value); }

inline Floats larger(const Floats& a, const Floats& b) { return a > b ? a : b; }

inline Floats from_bf16(const Halves& half) { return same_bits<Floats>(__builtin_convertvector(half, Words) << 16); }

// As fp16_to_float of common/half.h.
inline Floats from_fp16(const Halves& half) {
#if defined(__aarch64__)
  return same_bits<Floats>(vcvt_f32_f16(same_bits<float16x4_t>(half)));
#else
  const Words bits = __builtin_convertvector(half, Words);
  const Words sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  const Words finite = same_bits<Words>(same_bits<Floats>(magnitude << 13) * 0x1p112f);
  const Words special = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  return same_bits<Floats>((magnitude >= 0x7c00u ? special : finite) | sign);
#endif
}

// `count` values as floats into out, zeros from there up to `padded` (a multiple of the width, at most one vector further).
inline void widen(Element element, const void* from, int64_t count, int64_t padded, float* out) {
  const float* const wide = static_cast<const float*>(from);
  const uint16_t* const half = static_cast<const uint16_t*>(from);
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth)
    store(out + i, element == Element::f32    ? load<Floats>(wide + i)
                   : element == Element::bf16 ? from_bf16(load<Halves>(half + i))
                                              : from_fp16(load<Halves>(half + i)));
  if (i == padded) return;
  uint16_t rest_half[kWidth] = {};
  float rest_wide[kWidth] = {};
  if (element == Element::f32) {
    std::memcpy(rest_wide, wide + i, static_cast<size_t>(count - i) * 4);
    store(out + i, load<Floats>(rest_wide));
  } else {
    std::memcpy(rest_half, half + i, static_cast<size_t>(count - i) * 2);
    const Halves rest = load<Halves>(rest_half);
    store(out + i, element == Element::bf16 ? from_bf16(rest) : from_fp16(rest));
  }
}

// The two halves of one step of a butterfly: lanes l and l ^ Step of a and b change places where bit Step of l says so.
template <int Step, int... L>
inline Floats low(const Floats& a, const Floats& b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, ((L & Step) != 0 ? kWidth + (L ^ Step) : L)...);
}

template <int Step, int... L>
inline Floats high(const Floats& a, const Floats& b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, ((L & Step) != 0 ? kWidth + L : (L ^ Step))...);
}

template <int Step = 1>
inline void transpose(Floats (&rows)[kWidth]) {
  if constexpr (Step < kWidth) {
    QCOMPILE_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      if ((i & Step) != 0) continue;
      const Floats a = rows[i], b = rows[i + Step];
      rows[i] = low<Step>(a, b, Lanes{});
      rows[i + Step] = high<Step>(a, b, Lanes{});
    }
    transpose<2 * Step>(rows);
  }
}

// Lane l of the result is the sum over the lanes of rows[l].
template <int Step = 1>
inline Floats sums_of(Floats (&rows)[kWidth]) {
  if constexpr (Step < kWidth) {
    QCOMPILE_UNROLL
    for (int i = 0; i < kWidth; i += 2 * Step)
      rows[i] = low<Step>(rows[i], rows[i + Step], Lanes{}) + high<Step>(rows[i], rows[i + Step], Lanes{});
    return sums_of<2 * Step>(rows);
  }
  return rows[0];
}

// Lanes l and l ^ Step change places.
template <int Step, int... L>
inline Floats other(const Floats& a, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, a, (L ^ Step)...);
}

template <int Step = 1>
inline float sum_of_lanes(const Floats& value) {
  if constexpr (Step < kWidth) return sum_of_lanes<2 * Step>(value + other<Step>(value, Lanes{}));
  return value[0];
}

template <int Step = 1>
inline float largest_lane(const Floats& value) {
  if constexpr (Step < kWidth) return largest_lane<2 * Step>(larger(value, other<Step>(value, Lanes{})));
  return value[0];
}

// exp(x) for x <= 0 to 2e-7; 0 below -86, NaN for NaN. Cody and Waite's reduction to |r| <= ln(2) / 2, then a polynomial.
inline Floats exp_of(const Floats& x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, which is in the low bits
  const Floats shifted = x * 1.44269504f + kMagic;
  const Floats n = shifted - kMagic;
  const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Floats y = all(1.0f / 720);
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const Ints exponent = (same_bits<Ints>(shifted) - 0x4b400000) << 23;
  const Floats scaled = same_bits<Floats>(same_bits<Ints>(y) + exponent);
  return x >= -86.0f ? scaled : x == x ? Floats{} : x;
}

}  // namespace
}  // namespace qcompile
