// Scalar conversions between float and the two 16-bit float formats, bit exact and without library or ISA support.
#pragma once

#include <cstdint>
#include <cstring>

namespace qcompile {
namespace {

[[maybe_unused]] inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[maybe_unused]] inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

[[maybe_unused]] inline float bf16_to_float(uint16_t half) { return bits_float(static_cast<uint32_t>(half) << 16); }

// Rounds to nearest even; a NaN stays a NaN (rounding its mantissa could carry into infinity).
[[maybe_unused]] inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

[[maybe_unused]] inline float fp16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Placing the 15 bits at float's position divides the value by 2^112, subnormals included; one product restores it.
  const float scaled = bits_float(magnitude << 13) * 0x1p112f;
  return bits_float(float_bits(scaled) | sign);
}

// OCP 8-bit floating point specification, E4M3: bias 7, no infinity; 0x7f and 0xff, its NaN, come out as 480 (packing refuses them).
[[maybe_unused]] inline float e4m3_to_float(uint8_t byte) {
  const uint32_t exponent = byte >> 3 & 15u, mantissa = byte & 7u;
  const float size = static_cast<float>(exponent != 0 ? 8u + mantissa : mantissa) * bits_float(((exponent != 0 ? exponent : 1u) + 117u) << 23);
  return (byte & 0x80u) != 0 ? -size : size;
}

// The same, E5M2: the upper half of a float16.
[[maybe_unused]] inline float e5m2_to_float(uint8_t byte) { return fp16_to_float(static_cast<uint16_t>(byte << 8)); }

// OCP MX specification, E8M0: 2^(byte - 127).
[[maybe_unused]] inline float e8m0_to_float(uint8_t byte) {
  return bits_float(byte == 0 ? 0x00400000u : static_cast<uint32_t>(byte) << 23);
}

// Rounds to nearest even, overflows to infinity, keeps subnormals.
[[maybe_unused]] inline uint16_t float_to_fp16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // 0.5 has an ulp of 2^-24, the step of fp16 subnormals: the addition does the rounding.
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

}  // namespace
}  // namespace qcompile
