// How bytes are multiplied and added in pairs and fours, for vectors of kWidth 32-bit sums on x86.
// Instructions: https://www.intel.com/content/www/us/en/docs/intrinsics-guide (VPDPBUSD, VPMADDWD, VPMADDUBSW).
#pragma once

#include <immintrin.h>

#include "cpu/vectors.h"

namespace qcompile {
namespace {

// The vector of 32-bit words that repeats the four bytes at `from`.
inline Ints repeat(const uint8_t* from) { return all_ints(load<int32_t>(from)); }

inline Ints multiply_words(const Ints& a, const Ints& b) {
#if QCOMPILE_WIDTH == 16
  return same_bits<Ints>(_mm512_madd_epi16(same_bits<__m512i>(a), same_bits<__m512i>(b)));
#else
  return same_bits<Ints>(_mm256_madd_epi16(same_bits<__m256i>(a), same_bits<__m256i>(b)));
#endif
}

inline Ints multiply_bytes(const Ints& unsigned_bytes, const Ints& signed_bytes) {
#if QCOMPILE_WIDTH == 16
  return same_bits<Ints>(_mm512_maddubs_epi16(same_bits<__m512i>(unsigned_bytes), same_bits<__m512i>(signed_bytes)));
#else
  return same_bits<Ints>(_mm256_maddubs_epi16(same_bits<__m256i>(unsigned_bytes), same_bits<__m256i>(signed_bytes)));
#endif
}

typedef int16_t Shorts __attribute__((vector_size(4 * kWidth)));

// Four signed bytes of the weight with four of x as 16-bit numbers: exact, where VPMADDUBSW would saturate.
struct WordDot {
  static constexpr int64_t kValueBytes = 2;
  static constexpr int32_t kAdded = 0;
  struct Weights {
    Ints even, odd;  // k = (0, 2) and (1, 3)
  };

  static inline Weights decode(const uint8_t* line) {
    const Shorts bytes = load<Shorts>(line);
    return {same_bits<Ints>((bytes << 8) >> 8), same_bits<Ints>(bytes >> 8)};
  }
  static inline Ints add(const Ints& sum, const Weights& w, const uint8_t* x) {
    return sum + multiply_words(w.even, repeat(x)) + multiply_words(w.odd, repeat(x + 4));
  }
  static inline void write(const int8_t* codes, int32_t zero, uint8_t* to) {
    const int16_t values[4] = {static_cast<int16_t>(codes[0] - zero), static_cast<int16_t>(codes[2] - zero),
                               static_cast<int16_t>(codes[1] - zero), static_cast<int16_t>(codes[3] - zero)};
    std::memcpy(to, values, sizeof values);
  }
};

struct Nibbles {
  Ints first, second;  // bytes of k = (0 4 1 5) and (2 6 3 7)
};

inline Nibbles split_nibbles(const uint8_t* line) {
  const Words words = load<Words>(line);
  return {same_bits<Ints>(words & 0x0f0f0f0fu), same_bits<Ints>((words >> 4) & 0x0f0f0f0fu)};
}

// 15 * 128 * 4 < 2^15: two VPMADDUBSW add up without saturating.
struct NibbleMaddDot {
  typedef Nibbles Weights;
  static inline Weights decode(const uint8_t* line) { return split_nibbles(line); }
  static inline Ints add(const Ints& sum, const Weights& w, const uint8_t* x0, const uint8_t* x1) {
    const Shorts pairs = same_bits<Shorts>(multiply_bytes(w.first, repeat(x0))) + same_bits<Shorts>(multiply_bytes(w.second, repeat(x1)));
    return sum + multiply_words(same_bits<Ints>(pairs), all_ints(0x00010001));
  }
};

#if QCOMPILE_VNNI
inline Ints multiply_add(const Ints& sum, const Ints& unsigned_bytes, const Ints& signed_bytes) {
#if QCOMPILE_WIDTH == 16
  return same_bits<Ints>(_mm512_dpbusd_epi32(same_bits<__m512i>(sum), same_bits<__m512i>(unsigned_bytes), same_bits<__m512i>(signed_bytes)));
#elif QCOMPILE_VNNI_EVEX
  return same_bits<Ints>(_mm256_dpbusd_epi32(same_bits<__m256i>(sum), same_bits<__m256i>(unsigned_bytes), same_bits<__m256i>(signed_bytes)));
#else
  return same_bits<Ints>(_mm256_dpbusd_avx_epi32(same_bits<__m256i>(sum), same_bits<__m256i>(unsigned_bytes), same_bits<__m256i>(signed_bytes)));
#endif
}

struct ByteDot {
  static constexpr int64_t kValueBytes = 1;
  static constexpr int32_t kAdded = 128;
  typedef Ints Weights;
  // The weights are the unsigned factor: x as the signed one is repeated by the instruction itself on its way from memory.
  static inline Weights decode(const uint8_t* line) { return same_bits<Ints>(load<Words>(line) ^ 0x80808080u); }
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
