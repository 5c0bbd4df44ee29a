// What is left of BLAKE3 beside whole vectors of chunks: the last chunks, and the tree above them.
#include "cpu/digest.h"

#include <cstring>

#include "cpu/digest_rounds.h"

namespace qcompile {
namespace {

constexpr Choice<DigestKernel> kChoices[] = {
#if defined(__x86_64__)
    {&CpuFeatures::avx512, &kDigestAvx512},
    {&CpuFeatures::avx2, &kDigestAvx2},
#elif defined(__aarch64__)
    {&CpuFeatures::neon, &kDigestNeon},
#endif
    {nullptr, &kDigestGeneric},
};

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read as they lie in memory");

// One chunk of up to 1024 bytes.
void hash_chunk(const uint8_t* data, int64_t bytes, uint64_t number, uint32_t root, uint32_t (&value)[8]) {
  std::memcpy(value, kDigestStart, sizeof value);
  for (int64_t at = 0; at == 0 || at < bytes; at += 64) {
    const int64_t count = bytes - at < 64 ? bytes - at : 64;
    const bool last = at + 64 >= bytes;
    uint32_t m[16] = {};
    if (count > 0) std::memcpy(m, data + at, static_cast<size_t>(count));
    compress(value, m, static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), static_cast<uint32_t>(count),
             (at == 0 ? kChunkStart : 0) | (last ? kChunkEnd | root : 0));
  }
}

void hash_parent(const uint32_t* children, uint32_t root, uint32_t* result) {
  uint32_t value[8], m[16];
  std::memcpy(value, kDigestStart, sizeof value);
  std::memcpy(m, children, sizeof m);
  compress(value, m, uint32_t{0}, uint32_t{0}, 64, kParent | root);
  std::memcpy(result, value, sizeof value);
}

}  // namespace

const DigestKernel& digest_kernel(Isa isa) { return first_of(kChoices, isa); }

void digest_leaves(const DigestKernel& kernel, const uint8_t* data, int64_t bytes, int64_t begin, int64_t end, uint32_t* values) {
  int64_t chunk = begin;
  for (; chunk + kernel.lanes <= end && (chunk + kernel.lanes) * kChunkBytes <= bytes; chunk += kernel.lanes)
    kernel.chunks(data + chunk * kChunkBytes, static_cast<uint64_t>(chunk), values + chunk * kDigestWords);
  for (; chunk < end; ++chunk) {
    const int64_t left = bytes - chunk * kChunkBytes;
    uint32_t value[8];
    hash_chunk(data + chunk * kChunkBytes, left < kChunkBytes ? left : kChunkBytes, static_cast<uint64_t>(chunk), 0, value);
    std::memcpy(values + chunk * kDigestWords, value, sizeof value);
  }
}

// Pairs of neighbours, level by level; an odd one out goes up as it is. That is the tree of the specification, in which a left
// side holds the largest power of two of chunks that leaves something for the right one.
void digest_tree(const DigestKernel& kernel, std::vector<uint32_t>* values, uint8_t* digest) {
  uint32_t* const at = values->data();
  int64_t count = static_cast<int64_t>(values->size()) / kDigestWords;
  for (; count > 2; count = (count + 1) / 2) {
    int64_t pair = 0;
    for (; pair + kernel.lanes <= count / 2; pair += kernel.lanes)
      kernel.parents(at + pair * 2 * kDigestWords, at + pair * kDigestWords);
    for (; pair < count / 2; ++pair) hash_parent(at + pair * 2 * kDigestWords, 0, at + pair * kDigestWords);
    if (count % 2 != 0) std::memmove(at + pair * kDigestWords, at + (count - 1) * kDigestWords, kDigestWords * sizeof(uint32_t));
  }
  hash_parent(at, kRoot, at);
  std::memcpy(digest, at, kDigestWords * sizeof(uint32_t));
}

void digest_short(const uint8_t* data, int64_t bytes, uint8_t* digest) {
  uint32_t value[8];
  hash_chunk(data, bytes, 0, kRoot, value);
  std::memcpy(digest, value, sizeof value);
}

}  // namespace qcompile
