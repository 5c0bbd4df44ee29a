// BLAKE3, eight chunks at a time.
#include <immintrin.h>

#define QCOMPILE_WIDTH 8
#include "cpu/digest_body.h"

namespace qcompile {
namespace {

// Two squares of 8 x 8 words are turned over: pairs of words, pairs of pairs, halves.
void load_block(const uint8_t* from, int64_t stride, Lanes (&m)[16]) {
  for (int side = 0; side < 2; ++side) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * stride + side * 32));
    for (int i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
      a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
      a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
      a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      m[side * 8 + i] = reinterpret_cast<Lanes>(_mm256_permute2x128_si256(a[i], a[i + 4], 0x20));
      m[side * 8 + i + 4] = reinterpret_cast<Lanes>(_mm256_permute2x128_si256(a[i], a[i + 4], 0x31));
    }
  }
}

}  // namespace

const DigestKernel kDigestAvx2 = {kLanes, hash_chunks, hash_parents};

}  // namespace qcompile
