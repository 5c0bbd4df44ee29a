// How bytes are multiplied and added in fours on Arm (SDOT): signed with signed, so nothing is added to the weights beforehand.
// Instructions: https://developer.arm.com/architectures/instruction-sets/intrinsics (vdotq_s32).
#pragma once

#include <arm_neon.h>

#include "cpu/vectors.h"

namespace qcompile {
namespace {

inline Ints multiply_add(const Ints& sum, const Ints& a, const Ints& b) {
  return same_bits<Ints>(vdotq_s32(same_bits<int32x4_t>(sum), same_bits<int8x16_t>(a), same_bits<int8x16_t>(b)));
}

inline Ints repeat(const uint8_t* from) { return all_ints(load<int32_t>(from)); }

struct SignedDot {
  static constexpr int64_t kValueBytes = 1;
  static constexpr int32_t kAdded = 0;
  typedef Ints Weights;
  static inline Weights decode(const uint8_t* line) { return load<Ints>(line); }
  static inline Ints add(const Ints& sum, const Weights& w, const uint8_t* x) { return multiply_add(sum, w, repeat(x)); }
  static inline void write(const int8_t* codes, int32_t, uint8_t* to) { std::memcpy(to, codes, 4); }
};

struct SignedNibbleDot {
  struct Weights {
    Ints first, second;  // bytes of k = (0 4 1 5) and (2 6 3 7)
  };
  static inline Weights decode(const uint8_t* line) {
    const Words words = load<Words>(line);
    return {same_bits<Ints>(words & 0x0f0f0f0fu), same_bits<Ints>((words >> 4) & 0x0f0f0f0fu)};
  }
  static inline Ints add(const Ints& sum, const Weights& w, const uint8_t* x0, const uint8_t* x1) {
    return multiply_add(multiply_add(sum, w.first, repeat(x0)), w.second, repeat(x1));
  }
};

}  // namespace
}  // namespace qcompile
