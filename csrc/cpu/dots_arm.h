// How bytes are multiplied and added in fours, for vectors of four 32-bit sums on 64-bit Arm.
// Instructions: https://developer.arm.com/architectures/instruction-sets/intrinsics (SMLAL, SADALP, SDOT, TBL).
#pragma once

#include <arm_neon.h>

#include "cpu/vectors.h"

namespace qcompile {
namespace {

static_assert(kWidth == 4, "a vector of Advanced SIMD");

// The vector that repeats the four bytes at `from`.
inline int8x16_t repeat(const uint8_t* from) { return vreinterpretq_s8_s32(vdupq_n_s32(load<int32_t>(from))); }

// Signed bytes of the weight and of x as 16-bit numbers, each product and sum of its own: exact. The bytes of a vector are sorted by
// k first, so that one value of x meets the four outputs side by side.
struct WidenedDot {
  static constexpr int64_t kValueBytes = 2;
  static constexpr int32_t kAdded = 0;
  struct Weights {
    int16x8_t first, second;  // k = 0, 1 and 2, 3
  };

  static inline Weights decode(const uint8_t* line) {
    constexpr uint8_t kByK[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const int8x16_t sorted = vqtbl1q_s8(load<int8x16_t>(line), load<uint8x16_t>(kByK));
    return {vmovl_s8(vget_low_s8(sorted)), vmovl_high_s8(sorted)};
  }
  static inline Ints add(const Ints& sum, const Weights& w, const uint8_t* x) {
    const int16x4_t values = load<int16x4_t>(x);
    int32x4_t result = same_bits<int32x4_t>(sum);
    result = vmlal_lane_s16(result, vget_low_s16(w.first), values, 0);
    result = vmlal_high_lane_s16(result, w.first, values, 1);
    result = vmlal_lane_s16(result, vget_low_s16(w.second), values, 2);
    return same_bits<Ints>(vmlal_high_lane_s16(result, w.second, values, 3));
  }
  static inline void write(const int8_t* codes, int32_t zero, uint8_t* to) {
    int16_t values[4];
    for (int i = 0; i < 4; ++i) values[i] = static_cast<int16_t>(codes[i] - zero);
    std::memcpy(to, values, sizeof values);
  }
};

struct Nibbles {
  int8x16_t first, second;  // bytes of k = (0 4 1 5) and (2 6 3 7)
};

inline Nibbles split_nibbles(const uint8_t* line) {
  const uint8x16_t bytes = load<uint8x16_t>(line);
  return {vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4))};
}

// 15 * 128 * 4 < 2^15: four products add up in 16 bits.
struct NibbleWidenedDot {
  typedef Nibbles Weights;
  static inline Weights decode(const uint8_t* line) { return split_nibbles(line); }
  static inline Ints add(const Ints& sum, const Weights& w, const uint8_t* x0, const uint8_t* x1) {
    const int8x16_t first = repeat(x0), second = repeat(x1);
    int16x8_t low = vmull_s8(vget_low_s8(w.first), vget_low_s8(first)), high = vmull_high_s8(w.first, first);
    low = vmlal_s8(low, vget_low_s8(w.second), vget_low_s8(second));
    high = vmlal_high_s8(high, w.second, second);
    return same_bits<Ints>(vpadalq_s16(same_bits<int32x4_t>(sum), vpaddq_s16(low, high)));
  }
};

#if defined(__ARM_FEATURE_DOTPROD)
inline Ints multiply_add(const Ints& sum, const int8x16_t& a, const int8x16_t& b) {
  return same_bits<Ints>(vdotq_s32(same_bits<int32x4_t>(sum), a, b));
}

// Both factors are signed: nothing is added to the weights.
struct SignedDot {
  static constexpr int64_t kValueBytes = 1;
  static constexpr int32_t kAdded = 0;
  typedef int8x16_t Weights;
  static inline Weights decode(const uint8_t* line) { return load<int8x16_t>(line); }
  static inline Ints add(const Ints& sum, const Weights& w, const uint8_t* x) { return multiply_add(sum, w, repeat(x)); }
  static inline void write(const int8_t* codes, int32_t, uint8_t* to) { std::memcpy(to, codes, 4); }
};

struct NibbleDot {
  typedef Nibbles Weights;
  static inline Weights decode(const uint8_t* line) { return split_nibbles(line); }
  static inline Ints add(const Ints& sum, const Weights& w, const uint8_t* x0, const uint8_t* x1) {
    return multiply_add(multiply_add(sum, w.first, repeat(x0)), w.second, repeat(x1));
  }
};
#endif

}  // namespace
}  // namespace qcompile
