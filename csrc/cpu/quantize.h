// Rows of x rounded to 8-bit integers, by the formulas of ActivationQuant in qcompile/activations.py, computed in float32.
#pragma once

#include "cpu/vectors.h"

namespace qcompile {
namespace {

struct RowScale {
  float scale;  // NaN where x has a NaN (or an infinity that would have to set the scale): so are the results
  float zero;   // an integer
};

constexpr float kNotANumber = __builtin_nanf("");

struct Range {
  float least = 0.0f, most = 0.0f;  // zero is always inside
  bool finite = true;

  void include(const float* values, int64_t count) {
    // Lanes of their own, so that the compiler can use vectors.
    // x * 0 is NaN exactly for infinities and NaN.
    float least_of[kWidth] = {}, most_of[kWidth] = {}, poison[kWidth] = {};
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {
      for (int j = 0; j < kWidth; ++j) {
        const float value = values[i + j];
        least_of[j] = value < least_of[j] ? value : least_of[j];
        most_of[j] = value > most_of[j] ? value : most_of[j];
        poison[j] += value * 0.0f;
      }
    }
    for (; i < count; ++i) {
      least_of[0] = values[i] < least_of[0] ? values[i] : least_of[0];
      most_of[0] = values[i] > most_of[0] ? values[i] : most_of[0];
      poison[0] += values[i] * 0.0f;
    }
    for (int j = 0; j < kWidth; ++j) {
      least = least_of[j] < least ? least_of[j] : least;
      most = most_of[j] > most ? most_of[j] : most;
      finite = finite && poison[j] == 0.0f;
    }
  }
};

// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, for numbers below 2^22.
inline float round_even(float value) { return (value + 12582912.0f) - 12582912.0f; }

inline bool has_nan(const float* values, int64_t count) {
  int32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= values[i] != values[i] ? 1 : 0;
  return found != 0;
}

// The range of `count` values as far as the rounding needs it: a static scale needs to know of NaN only.
inline void include(const Activation& activation, const float* values, int64_t count, Range* range) {
  if (activation.rounding == Rounding::tensor)
    range->finite = range->finite && !has_nan(values, count);
  else
    range->include(values, count);
}

// `value` rounded to a dtype.
template <Dtype kSteps>
inline float step(float value) {
  if constexpr (kSteps == Dtype::f32) return value;
  if constexpr (kSteps == Dtype::fp16) return fp16_to_float(float_to_fp16(value));
  // As float_to_bf16, but without its branch for NaN: a row with one has its scale marked instead.
  const uint32_t bits = float_bits(value);
  return bits_float((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

inline float clamp(float value, float least, float most) {
  value = value > most ? most : value;
  return value >= least ? value : least;  // so that a NaN becomes a number
}

template <Dtype kSteps>
inline RowScale scale_of_steps(const Activation& activation, const Range& range) {
  RowScale result = {activation.scale, activation.zero};
  if (activation.rounding == Rounding::token || activation.rounding == Rounding::group)
    result.scale = step<kSteps>((-range.least > range.most ? -range.least : range.most) / activation.divisor);
  if (activation.rounding == Rounding::token_asymmetric)
    result.scale = step<kSteps>(step<kSteps>(range.most - range.least) / 255.0f);
  if (result.scale == 0.0f) result.scale = 1.0f;
  if (activation.rounding == Rounding::token_asymmetric)
    result.zero = round_even(clamp(step<kSteps>(-128.0f - step<kSteps>(range.least / result.scale)), -128.0f, 127.0f));
  if (!range.finite) result.scale = kNotANumber;
  return result;
}

inline RowScale scale_of(const Activation& activation, const Range& range) {
  if (activation.steps == Dtype::bf16) return scale_of_steps<Dtype::bf16>(activation, range);
  if (activation.steps == Dtype::fp16) return scale_of_steps<Dtype::fp16>(activation, range);
  return scale_of_steps<Dtype::f32>(activation, range);
}

template <Dtype kSteps>
inline void quantize_steps(float least, const RowScale& row, const float* values, int64_t count, int8_t* codes) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = clamp(step<kSteps>(step<kSteps>(values[i] / row.scale) + row.zero), least, 127.0f);
    codes[i] = static_cast<int8_t>(static_cast<int32_t>(round_even(value)));
  }
}

// Codes of `count` values with a scale, -128..127.
inline void quantize(const Activation& activation, const RowScale& row, const float* values, int64_t count, int8_t* codes) {
  const bool symmetric = activation.rounding == Rounding::token || activation.rounding == Rounding::group;
  const float least = symmetric ? activation.low : -128.0f;
  if (activation.steps == Dtype::bf16) return quantize_steps<Dtype::bf16>(least, row, values, count, codes);
  if (activation.steps == Dtype::fp16) return quantize_steps<Dtype::fp16>(least, row, values, count, codes);
  return quantize_steps<Dtype::f32>(least, row, values, count, codes);
}

constexpr int64_t kPiece = 512;  // values read at a time

// Values [from, from + count) of a group of x, counted within the group and zero beyond its end, as float.
inline void read_group(const PackedShape& shape, const LinearInput& input, int64_t row, int64_t g, int64_t from, int64_t count,
                       float* values) {
  const int64_t k = g * shape.group + from, end = smaller((g + 1) * shape.group, shape.k);
  read_row(input, row, k, larger(0, smaller(count, end - k)), count, values);
}

// The scale of a whole row of x; for Rounding::group, of its group g.
inline RowScale find_scale(const PackedShape& shape, const LinearInput& input, int64_t row, int64_t g) {
  const bool one = input.activation.rounding == Rounding::group;
  const int64_t begin = one ? g * shape.group : 0, end = one ? smaller((g + 1) * shape.group, shape.k) : shape.k;
  float values[kPiece];
  Range range;
  for (int64_t k = begin; k < end; k += kPiece) {
    const int64_t count = smaller(kPiece, end - k);
    read_row(input, row, k, count, count, values);
    include(input.activation, values, count, &range);
  }
  return scale_of(input.activation, range);
}

}  // namespace
}  // namespace qcompile
