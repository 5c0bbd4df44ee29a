// BLAKE3 of a stretch of memory, many chunks at a time: https://github.com/BLAKE3-team/BLAKE3-specs (hash mode, 32 bytes).
// A fingerprint that two contents cannot share, at the speed of memory. No torch here.
#pragma once

#include <cstdint>
#include <vector>

#include "common/isa.h"

namespace qcompile {

constexpr int64_t kChunkBytes = 1024;
constexpr int64_t kDigestWords = 8;  // of a chaining value, and of the digest

// How one ISA works on `lanes` chunks or pairs at a time.
struct DigestKernel {
  int64_t lanes;
  // `lanes` whole chunks from `data` on, the first one being number `first` of the message -> [lanes][8].
  void (*chunks)(const uint8_t* data, uint64_t first, uint32_t* values);
  // Chaining values [2 * lanes][8] -> those of their parents [lanes][8]. In place is allowed.
  void (*parents)(const uint32_t* children, uint32_t* values);
};
extern const DigestKernel kDigestGeneric, kDigestAvx2, kDigestAvx512, kDigestNeon;

const DigestKernel& digest_kernel(Isa isa);

// Chunks of a message; an empty one has one.
inline int64_t digest_chunks(int64_t bytes) { return bytes <= kChunkBytes ? 1 : (bytes + kChunkBytes - 1) / kChunkBytes; }

// The chaining values of chunks [begin, end) of a message of more than one chunk, at values + begin * 8.
void digest_leaves(const DigestKernel& kernel, const uint8_t* data, int64_t bytes, int64_t begin, int64_t end, uint32_t* values);

// The digest from the chaining values of all chunks, which are overwritten.
void digest_tree(const DigestKernel& kernel, std::vector<uint32_t>* values, uint8_t* digest);

// The digest of a message of one chunk.
void digest_short(const uint8_t* data, int64_t bytes, uint8_t* digest);

}  // namespace qcompile
