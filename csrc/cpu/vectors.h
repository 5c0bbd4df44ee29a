// The parts of the bodies of quantized products that need no particular ISA: reading x, scales, zero points, storing y.
#pragma once

#include "common/half.h"
#include "cpu/panels.h"
#include "cpu/width.h"

namespace qcompile {
namespace {

constexpr int kParts = kBlock / kWidth;  // vectors of one block

inline Ints all_ints(int32_t value) { return Ints{} + value; }
inline Floats to_floats(const Ints& value) { return __builtin_convertvector(value, Floats); }

// `at`: index of the first of kWidth entries of [blocks][groups][16].
inline Floats load_scales(const PackedWeight& weight, int64_t at) {
  if (weight.shape.scale_kind == ScaleKind::f32) return load<Floats>(weight.scales + at * 4);
  uint16_t half[kWidth];
  std::memcpy(half, weight.scales + at * 2, sizeof half);
  Floats scales;
  if (weight.shape.scale_kind == ScaleKind::bf16) {
    Words bits;
    for (int i = 0; i < kWidth; ++i) bits[i] = static_cast<uint32_t>(half[i]) << 16;
    scales = same_bits<Floats>(bits);
  } else {
    for (int i = 0; i < kWidth; ++i) scales[i] = fp16_to_float(half[i]);
  }
  return scales;
}

// Zero points; `absent` where the weight keeps none.
inline Floats load_zeros(const PackedWeight& weight, int64_t at, int32_t absent) {
  if (weight.zeros == nullptr) return all(static_cast<float>(absent));
  Ints zeros;
  for (int i = 0; i < kWidth; ++i)
    zeros[i] = weight.shape.bits == 4 ? weight.zeros[at + i] : static_cast<int8_t>(weight.zeros[at + i]);
  return to_floats(zeros);
}

// One block of one row: bias, rounding to the dtype, and no more than n columns.
inline void store_row(const PanelArgs& args, int64_t row, int64_t column, const Floats (&total)[kParts]) {
  const int64_t count = smaller(kBlock, args.weight->shape.n - column), at = row * args.output.stride + column;
  float values[kBlock] = {};
  if (args.output.bias != nullptr) std::memcpy(values, args.output.bias + column, static_cast<size_t>(count) * 4);
  for (int part = 0; part < kParts; ++part) {
    const Floats sum = total[part] + load<Floats>(values + part * kWidth);
    std::memcpy(values + part * kWidth, &sum, sizeof sum);
  }
  if (args.dtype == Dtype::f32) {
    std::memcpy(static_cast<float*>(args.output.y) + at, values, static_cast<size_t>(count) * 4);
    return;
  }
  uint16_t half[kBlock];
  for (int i = 0; i < kBlock; ++i) half[i] = args.dtype == Dtype::bf16 ? float_to_bf16(values[i]) : float_to_fp16(values[i]);
  std::memcpy(static_cast<uint16_t*>(args.output.y) + at, half, static_cast<size_t>(count) * 2);
}

// `count` values of one row from position k on as float, zero from there up to `padded`.
inline void read_row(const LinearInput& input, int64_t row, int64_t k, int64_t count, int64_t padded, float* out) {
  const int64_t at = row * input.stride;
  const float* const wide = static_cast<const float*>(input.x) + at;
  const uint16_t* const half = static_cast<const uint16_t*>(input.x) + at;
  const int64_t* const perm = input.perm == nullptr ? nullptr : input.perm + k;
  if (input.dtype == Dtype::f32) {
    for (int64_t i = 0; i < count; ++i) out[i] = wide[perm == nullptr ? k + i : perm[i]];
  } else if (input.dtype == Dtype::bf16) {
    for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_float(half[perm == nullptr ? k + i : perm[i]]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = fp16_to_float(half[perm == nullptr ? k + i : perm[i]]);
  }
  for (int64_t i = count; i < padded; ++i) out[i] = 0.0f;
}

}  // namespace
}  // namespace qcompile
