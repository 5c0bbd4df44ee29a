// BLAKE3 in plain C++, four chunks at a time.
#define QCOMPILE_WIDTH 4
#include "cpu/digest_body.h"

namespace qcompile {
namespace {

void load_block(const uint8_t* from, int64_t stride, Lanes (&m)[16]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t words[16];
    std::memcpy(words, from + lane * stride, sizeof words);
    for (int w = 0; w < 16; ++w) m[w][lane] = words[w];
  }
}

}  // namespace

const DigestKernel kDigestGeneric = {kLanes, hash_chunks, hash_parents};

}  // namespace qcompile
