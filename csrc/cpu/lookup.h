// A code book of 16 floats in registers, looked up by the low four bits of every lane.
#pragma once

#include "cpu/width.h"

#if defined(__AVX2__) && QCOMPILE_WIDTH >= 8
#include <immintrin.h>
#endif

namespace qcompile {
namespace {

#if defined(__AVX512F__) && QCOMPILE_WIDTH == 16

struct Book {
  __m512 entries;

  explicit Book(const uint8_t* from) : entries(_mm512_loadu_ps(from)) {}

  Floats operator()(const Words& index) const {
    return same_bits<Floats>(_mm512_permutexvar_ps(same_bits<__m512i>(index), entries));
  }
};

#elif defined(__AVX2__) && QCOMPILE_WIDTH == 8

struct Book {
  __m256 first, last;

  explicit Book(const uint8_t* from) : first(load<__m256>(from)), last(load<__m256>(from + 32)) {}

  Floats operator()(const Words& index) const {
    const __m256i at = same_bits<__m256i>(index);
    // Bit 3 says which half: shifted to the sign, where the blend looks.
    return same_bits<Floats>(_mm256_blendv_ps(_mm256_permutevar8x32_ps(first, at), _mm256_permutevar8x32_ps(last, at),
                                              same_bits<__m256>(index << 28)));
  }
};

#elif defined(__aarch64__)

struct Book {
  uint8x16x4_t bytes;

  explicit Book(const uint8_t* from) {
    for (int i = 0; i < 4; ++i) bytes.val[i] = load<uint8x16_t>(from + 16 * i);
  }

  // The four bytes of an entry have the numbers 4 i .. 4 i + 3.
  Floats operator()(const Words& index) const {
    return same_bits<Floats>(vqtbl4q_u8(bytes, same_bits<uint8x16_t>((index & 15u) * 0x04040404u + 0x03020100u)));
  }
};

#else

struct Book {
  float entries[16];

  explicit Book(const uint8_t* from) { std::memcpy(entries, from, sizeof entries); }

  Floats operator()(const Words& index) const {
    Floats found;
    for (int i = 0; i < kWidth; ++i) found[i] = entries[index[i] & 15u];
    return found;
  }
};

#endif

// For weights of integers.
struct NoBook {
  explicit NoBook(const uint8_t*) {}
};

}  // namespace
}  // namespace qcompile
