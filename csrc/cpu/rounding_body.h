// Rounding to small floats in vectors. Halfway cases go to even by adding a large number whose last bit is the step wanted, and taking
// it off again.
#pragma once

#include "common/half.h"
#include "cpu/lanes.h"
#include "cpu/rounding.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace qcompile {
namespace {

constexpr int64_t kRoundedAtOnce = 128;

inline Words sign_of(const Floats& value) { return same_bits<Words>(value) & 0x80000000u; }
inline Floats size_of(const Floats& value) { return same_bits<Floats>(same_bits<Words>(value) & 0x7fffffffu); }
inline Floats with_sign(const Floats& size, const Floats& of) { return same_bits<Floats>(same_bits<Words>(size) | sign_of(of)); }
inline Floats smaller_of(const Floats& value, float most) { return value > most ? all(most) : value; }  // NaN stays

// To a multiple of `step`, a power of two; for sizes far below 2^22 steps.
inline Floats to_steps(const Floats& size, float step) {
  const float large = 12582912.0f * step;  // 1.5 * 2^23
  return (size + large) - large;
}

inline Floats to_e2m1(const Floats& value) {
  const Floats size = smaller_of(size_of(value), 6.0f);
  const Floats rounded = size < 2.0f ? to_steps(size, 0.5f) : size < 4.0f ? to_steps(size, 1.0f) : to_steps(size, 2.0f);
  return with_sign(rounded, value);
}

inline Floats to_e4m3(const Floats& value) {
  const Floats size = smaller_of(size_of(value), 448.0f);
  const Words bits = same_bits<Words>(size);
  const Floats normal = same_bits<Floats>((bits + 0x7ffffu + (bits >> 20 & 1u)) & 0xfff00000u);
  const Floats rounded = size < 0x1p-6f ? to_steps(size, 0x1p-9f) : size == size ? normal : size;
  return with_sign(rounded, value);
}

inline Floats to_bf16(const Floats& value) {
  const Words bits = same_bits<Words>(value);
  const Floats rounded = same_bits<Floats>((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
  return value == value ? rounded : value;
}

inline Floats to_fp16(const Floats& value) {
#if defined(__AVX512F__) && QCOMPILE_WIDTH == 16
  return same_bits<Floats>(_mm512_cvtph_ps(_mm512_cvtps_ph(same_bits<__m512>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)));
#elif defined(__F16C__) && QCOMPILE_WIDTH == 8
  return same_bits<Floats>(_mm256_cvtph_ps(_mm256_cvtps_ph(same_bits<__m256>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)));
#else
  Floats rounded;
  for (int i = 0; i < kWidth; ++i) rounded[i] = fp16_to_float(float_to_fp16(value[i]));
  return rounded;
#endif
}

template <Element kSteps>
inline Floats step(const Floats& value) {
  if constexpr (kSteps == Element::bf16) return to_bf16(value);
  if constexpr (kSteps == Element::fp16) return to_fp16(value);
  return value;
}

template <Element kSteps>
inline float step(float value) {
  if constexpr (kSteps == Element::bf16) return bf16_to_float(float_to_bf16(value));
  if constexpr (kSteps == Element::fp16) return fp16_to_float(float_to_fp16(value));
  return value;
}

constexpr float epsilon_of(Element steps) { return steps == Element::bf16 ? 0x1p-7f : steps == Element::fp16 ? 0x1p-10f : 0x1p-23f; }

// The bits of the largest size of a group: as integers they are in the order of the numbers, with infinity and NaN above.
inline uint32_t largest_bits(const float* values, int64_t count) {
  Ints most{};
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const Ints bits = same_bits<Ints>(size_of(load<Floats>(values + i)));
    most = bits > most ? bits : most;
  }
  int32_t found = 0;
  for (int lane = 0; lane < kWidth; ++lane) found = most[lane] > found ? most[lane] : found;
  for (; i < count; ++i) {
    const int32_t bits = static_cast<int32_t>(float_bits(values[i]) & 0x7fffffffu);
    found = bits > found ? bits : found;
  }
  return static_cast<uint32_t>(found);
}

// The scale of a group of microscaling numbers.
template <Element kSteps>
inline float power_of_two(uint32_t largest, int offset) {
  int field;
  if constexpr (kSteps == Element::fp16) {
    const uint32_t half = float_to_fp16(bits_float(largest));
    field = static_cast<int>((half + (1u << 8)) >> 10 & 31u);
    field = field == 31 ? 255 : field == 0 ? 0 : field + 112;
  } else {
    field = static_cast<int>((largest + (1u << 21)) >> 23 & 255u);
  }
  int stored = field == 255 ? 255 : field < offset ? 0 : field - offset;
  if (largest > 0x7f800000u) stored = 0;
  const float scale = step<kSteps>(bits_float(stored == 0 ? 0x00400000u : static_cast<uint32_t>(stored) << 23));
  return scale == 0.0f ? 1.0f : scale;
}

template <FloatKind kKind, Element kSteps>
inline float scale_of(const FloatRounding& r, uint32_t largest) {
  if constexpr (kKind == FloatKind::mxfp4) return power_of_two<kSteps>(largest, 2);
  if constexpr (kKind == FloatKind::mxfp8) return power_of_two<kSteps>(largest, 8);
  if constexpr (kKind == FloatKind::fp8_tensor) return r.scale;
  const float most = bits_float(largest);
  if constexpr (kKind == FloatKind::nvfp4) {
    const float block = to_e4m3(all(step<kSteps>(most / 6.0f) * r.scale))[0];
    return (block == 0.0f ? 0.125f : block) / r.scale;
  }
  const float scale = step<kSteps>(most / 448.0f);
  return scale == 0.0f ? epsilon_of(kSteps) : scale;
}

template <FloatKind kKind, Element kSteps>
inline Floats rounded(const Floats& value, float scale) {
  constexpr bool kFp4 = kKind == FloatKind::nvfp4 || kKind == FloatKind::mxfp4;
  // Microscaling and FP8 divide in the dtype of x, NVFP4 in float32.
  constexpr Element kQuotient = kKind == FloatKind::nvfp4 ? Element::f32 : kSteps;
  const Floats quotient = step<kQuotient>(value / all(scale)) + 0.0f;  // no -0, as adding a zero point of 0 leaves none
  return (kFp4 ? to_e2m1(quotient) : to_e4m3(quotient)) * all(scale);
}

inline Halves halves_of(Element element, const Floats& value) {
  if (element == Element::bf16) return __builtin_convertvector(same_bits<Words>(to_bf16(value)) >> 16, Halves);
#if defined(__AVX512F__) && QCOMPILE_WIDTH == 16
  return same_bits<Halves>(_mm512_cvtps_ph(same_bits<__m512>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__) && QCOMPILE_WIDTH == 8
  return same_bits<Halves>(_mm256_cvtps_ph(same_bits<__m256>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  Halves half;
  for (int i = 0; i < kWidth; ++i) half[i] = float_to_fp16(value[i]);
  return half;
#endif
}

// `values` has room for whole vectors.
inline void put(Element element, const float* values, int64_t count, void* to) {
  if (element == Element::f32) {
    std::memcpy(to, values, static_cast<size_t>(count) * 4);
    return;
  }
  uint16_t half[kRoundedAtOnce + kWidth];
  for (int64_t i = 0; i < count; i += kWidth) {
    const Halves rounded = halves_of(element, load<Floats>(values + i));
    std::memcpy(half + i, &rounded, sizeof rounded);
  }
  std::memcpy(to, half, static_cast<size_t>(count) * 2);
}

template <FloatKind kKind, Element kSteps>
void round_rows(const FloatRounding& r, int64_t begin, int64_t end) {
  constexpr int64_t kGroup = group_of(kKind) == 0 ? kRoundedAtOnce : group_of(kKind);
  const int64_t bytes = element_bytes(r.element);
  float values[kGroup + kWidth];
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* const x = static_cast<const uint8_t*>(r.x) + row * r.k * bytes;
    uint8_t* const y = static_cast<uint8_t*>(r.y) + row * r.k * bytes;
    uint32_t largest = 0;
    if constexpr (kKind == FloatKind::fp8_token) {
      for (int64_t k = 0; k < r.k; k += kGroup) {
        const int64_t count = r.k - k < kGroup ? r.k - k : kGroup;
        widen(r.element, x + k * bytes, count, rounded_up(count, kWidth), values);
        const uint32_t here = largest_bits(values, count);
        largest = here > largest ? here : largest;
      }
    }
    float scale = scale_of<kKind, kSteps>(r, largest);
    for (int64_t k = 0; k < r.k; k += kGroup) {
      const int64_t count = r.k - k < kGroup ? r.k - k : kGroup;
      widen(r.element, x + k * bytes, count, rounded_up(count, kWidth), values);
      if constexpr (group_of(kKind) != 0) scale = scale_of<kKind, kSteps>(r, largest_bits(values, count));
      for (int64_t i = 0; i < count; i += kWidth) store(values + i, rounded<kKind, kSteps>(load<Floats>(values + i), scale));
      put(r.element, values, count, y + k * bytes);
    }
  }
}

template <Element kSteps>
void round_rows_in(const FloatRounding& r, int64_t begin, int64_t end) {
  switch (r.kind) {
    case FloatKind::nvfp4: return round_rows<FloatKind::nvfp4, kSteps>(r, begin, end);
    case FloatKind::mxfp4: return round_rows<FloatKind::mxfp4, kSteps>(r, begin, end);
    case FloatKind::mxfp8: return round_rows<FloatKind::mxfp8, kSteps>(r, begin, end);
    case FloatKind::fp8_token: return round_rows<FloatKind::fp8_token, kSteps>(r, begin, end);
    case FloatKind::fp8_group: return round_rows<FloatKind::fp8_group, kSteps>(r, begin, end);
    case FloatKind::fp8_tensor: return round_rows<FloatKind::fp8_tensor, kSteps>(r, begin, end);
  }
}

inline void round_any(const FloatRounding& r, int64_t begin, int64_t end) {
  switch (r.steps) {
    case Element::bf16: return round_rows_in<Element::bf16>(r, begin, end);
    case Element::fp16: return round_rows_in<Element::fp16>(r, begin, end);
    case Element::f32:
    case Element::boolean: return round_rows_in<Element::f32>(r, begin, end);
  }
}

}  // namespace
}  // namespace qcompile
