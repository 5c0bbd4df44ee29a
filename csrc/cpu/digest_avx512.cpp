// BLAKE3, sixteen chunks at a time.
#include <immintrin.h>

#define QCOMPILE_WIDTH 16
#include "cpu/digest_body.h"

namespace qcompile {
namespace {

// A square of 16 x 16 words is turned over: pairs of words, pairs of pairs, then quarters twice.
void load_block(const uint8_t* from, int64_t stride, Lanes (&m)[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // Now a[4 r + w] holds words w, w + 4, w + 8, w + 12 of rows 4 r .. 4 r + 3, a quarter each.
  for (int w = 0; w < 4; ++w) {
    const __m512i even_low = _mm512_shuffle_i32x4(a[w], a[4 + w], 0x88), odd_low = _mm512_shuffle_i32x4(a[w], a[4 + w], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(a[8 + w], a[12 + w], 0x88), odd_high = _mm512_shuffle_i32x4(a[8 + w], a[12 + w], 0xdd);
    m[w] = reinterpret_cast<Lanes>(_mm512_shuffle_i32x4(even_low, even_high, 0x88));
    m[w + 8] = reinterpret_cast<Lanes>(_mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    m[w + 4] = reinterpret_cast<Lanes>(_mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    m[w + 12] = reinterpret_cast<Lanes>(_mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}

}  // namespace

const DigestKernel kDigestAvx512 = {kLanes, hash_chunks, hash_parents};

}  // namespace qcompile
