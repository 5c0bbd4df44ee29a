// BLAKE3, four chunks at a time, in the vectors of 64-bit Arm.
#include <arm_neon.h>

#define QCOMPILE_WIDTH 4
#include "cpu/digest_body.h"

namespace qcompile {
namespace {

// Four squares of 4 x 4 words are turned over: pairs of words, then halves.
void load_block(const uint8_t* from, int64_t stride, Lanes (&m)[16]) {
  for (int square = 0; square < 4; ++square) {
    uint32x4_t a[4];
    for (int i = 0; i < 4; ++i) a[i] = vreinterpretq_u32_u8(vld1q_u8(from + i * stride + square * 16));
    for (int half = 0; half < 2; ++half) {
      const uint64x2_t first = vreinterpretq_u64_u32(half == 0 ? vtrn1q_u32(a[0], a[1]) : vtrn2q_u32(a[0], a[1]));
      const uint64x2_t second = vreinterpretq_u64_u32(half == 0 ? vtrn1q_u32(a[2], a[3]) : vtrn2q_u32(a[2], a[3]));
      m[square * 4 + half] = (Lanes)vtrn1q_u64(first, second);
      m[square * 4 + half + 2] = (Lanes)vtrn2q_u64(first, second);
    }
  }
}

}  // namespace

const DigestKernel kDigestNeon = {kLanes, hash_chunks, hash_parents};

}  // namespace qcompile
