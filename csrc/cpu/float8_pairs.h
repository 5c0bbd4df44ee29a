// Numbers of 8 bits as pairs of bfloat16, which holds all of E4M3 and E5M2: two tables of 128 bytes, looked up by VPERMI2B
// (AVX512_VBMI), give the bytes of the sizes; the sign is put in afterwards.
#pragma once

#include <immintrin.h>

#include "common/half.h"

namespace qcompile {
namespace {

struct Float8Pairs {
  __m512i low[2], high[2];

  explicit Float8Pairs(float (*number)(uint8_t)) {
    alignas(64) uint8_t bytes[2][128];
    for (int code = 0; code < 128; ++code) {
      const uint32_t bits = float_bits(number(static_cast<uint8_t>(code))) >> 16;
      bytes[0][code] = static_cast<uint8_t>(bits);
      bytes[1][code] = static_cast<uint8_t>(bits >> 8);
    }
    for (int half = 0; half < 2; ++half) {
      low[half] = _mm512_load_si512(bytes[0] + half * 64);
      high[half] = _mm512_load_si512(bytes[1] + half * 64);
    }
  }

  // A line of [16 outputs][4 of k] becomes pairs (0, 1) and pairs (2, 3) of all outputs.
  inline void line(const uint8_t* from, __m512i (&pairs)[2]) const {
    // Pairs (0, 1) of four outputs to the lower half of each 128 bits, pairs (2, 3) to the upper: so the bytes of numbers interleave.
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    const __m512i codes = _mm512_shuffle_epi8(_mm512_loadu_si512(from), order);
    constexpr int kOrAnd = 0xea;  // a & b | c
    const __m512i upper = _mm512_ternarylogic_epi32(codes, _mm512_set1_epi8(static_cast<char>(0x80)),
                                                    _mm512_permutex2var_epi8(high[0], codes, high[1]), kOrAnd);
    const __m512i lower = _mm512_permutex2var_epi8(low[0], codes, low[1]);
    pairs[0] = _mm512_unpacklo_epi8(lower, upper);
    pairs[1] = _mm512_unpackhi_epi8(lower, upper);
  }
};

}  // namespace
}  // namespace qcompile
