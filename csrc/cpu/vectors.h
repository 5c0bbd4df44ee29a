// The parts of the bodies of quantized products that need no particular ISA: reading x, scales, zero points, storing y.
#pragma once

#include "common/half.h"
#include "cpu/panels.h"
#include "cpu/width.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace qcompile {
namespace {

constexpr int kParts = kBlock / kWidth;  // vectors of one block

inline Ints all_ints(int32_t value) { return Ints{} + value; }
inline Floats to_floats(const Ints& value) { return __builtin_convertvector(value, Floats); }

// kWidth bytes, each in a lane.
inline Words load_bytes(const uint8_t* from) {
#if defined(__AVX512F__) && QCOMPILE_WIDTH == 16
  return same_bits<Words>(_mm512_cvtepu8_epi32(load<__m128i>(from)));
#elif defined(__AVX2__) && QCOMPILE_WIDTH == 8
  return same_bits<Words>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#elif defined(__aarch64__)
  const uint16x8_t shorts = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(load<uint32_t>(from))));
  return same_bits<Words>(vmovl_u16(vget_low_u16(shorts)));
#else
  Words bytes;
  for (int i = 0; i < kWidth; ++i) bytes[i] = from[i];
  return bytes;
#endif
}

// As e4m3_to_float of common/half.h. In the place of float's bits, with the exponent moved by the difference of the biases, a normal
// number is right, and 2^-7 (1 + m / 8) stands for the subnormal one 2^-6 m / 8. The smaller of it and twice it less 2^-6 is right.
inline Floats from_e4m3(const Words& bytes) {
  const Floats moved = same_bits<Floats>(((bytes & 0x7fu) << 20) + (120u << 23));
  const Floats twice = moved + moved - 0x1p-6f;
  const Floats size = twice < moved ? twice : moved;
  return same_bits<Floats>(same_bits<Words>(size) | (bytes & 0x80u) << 24);
}

// As e5m2_to_float, for finite numbers: the same with 2^-15 (1 + m / 4) and 2^-14 m / 4.
inline Floats from_e5m2(const Words& bytes) {
  const Floats moved = same_bits<Floats>(((bytes & 0x7fu) << 21) + (112u << 23));
  const Floats twice = moved + moved - 0x1p-14f;
  const Floats size = twice < moved ? twice : moved;
  return same_bits<Floats>(same_bits<Words>(size) | (bytes & 0x80u) << 24);
}

// As e8m0_to_float: 2^-127, of byte 0, has no exponent of its own.
inline Floats from_e8m0(const Words& bytes) {
  const Words least = (bytes - 1u) >> 31;
  return same_bits<Floats>(bytes << 23 | least << 22);
}

// Of all outputs of a block, `at` of [blocks][groups].
[[maybe_unused]] inline float shared_scale(const PackedWeight& weight, int64_t at) {
  const ScaleKind kind = weight.shape.scale_kind;
  const uint8_t* const from = weight.scales + at * weight.shape.scale_bytes();
  if (kind == ScaleKind::f32) return load<float>(from);
  if (kind == ScaleKind::e4m3) return e4m3_to_float(*from);
  if (kind == ScaleKind::e8m0) return e8m0_to_float(*from);
  const uint16_t half = load<uint16_t>(from);
  return kind == ScaleKind::bf16 ? bf16_to_float(half) : fp16_to_float(half);
}

// `at`: index of the first of kWidth entries of [blocks][groups][16].
inline Floats load_scales(const PackedWeight& weight, int64_t at) {
  if (weight.shape.shared_scales) return all(shared_scale(weight, at / kBlock));
  if (weight.shape.scale_kind == ScaleKind::f32) return load<Floats>(weight.scales + at * 4);
  if (weight.shape.scale_bytes() == 1) {
    const Words bytes = load_bytes(weight.scales + at);
    return weight.shape.scale_kind == ScaleKind::e4m3 ? from_e4m3(bytes) : from_e8m0(bytes);
  }
  uint16_t half[kWidth];
  std::memcpy(half, weight.scales + at * 2, sizeof half);
  Floats scales;
  if (weight.shape.scale_kind == ScaleKind::bf16) {
    Words bits;
    for (int i = 0; i < kWidth; ++i) bits[i] = static_cast<uint32_t>(half[i]) << 16;
    scales = same_bits<Floats>(bits);
  } else {
#if defined(__aarch64__)
    scales = same_bits<Floats>(vcvt_f32_f16(load<float16x4_t>(half)));
#else
    for (int i = 0; i < kWidth; ++i) scales[i] = fp16_to_float(half[i]);
#endif
  }
  return scales;
}

// Of one part of a block; 1 where the weight keeps none.
inline Floats load_outer(const PackedWeight& weight, int64_t block, int part) {
  return weight.outer == nullptr ? all(1.0f) : load<Floats>(weight.outer + (block * kBlock + part * kWidth) * 4);
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
template <class Args>
inline void store_row(const Args& args, int64_t row, int64_t column, const Floats (&total)[kParts]) {
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
