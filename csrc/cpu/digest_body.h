// Vectors of QCOMPILE_WIDTH words, one for each chunk or pair. The file that includes this defines load_block(from, stride, m):
// m[w] = word w of the 64 bytes at from, from + stride, ...
#pragma once

#include <cstring>

#include "cpu/digest_rounds.h"

namespace qcompile {
namespace {

constexpr int kLanes = QCOMPILE_WIDTH;
typedef uint32_t Lanes __attribute__((vector_size(4 * kLanes)));

void load_block(const uint8_t* from, int64_t stride, Lanes (&m)[16]);

inline void start(Lanes (&value)[8]) {
  for (int i = 0; i < 8; ++i) value[i] = Lanes{} + kDigestStart[i];
}

inline void store(const Lanes (&value)[8], uint32_t* values) {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < 8; ++i) values[lane * kDigestWords + i] = value[i][lane];
}

void hash_chunks(const uint8_t* data, uint64_t first, uint32_t* values) {
  Lanes value[8], m[16], low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = static_cast<uint32_t>(first + static_cast<uint64_t>(lane));
    high[lane] = static_cast<uint32_t>((first + static_cast<uint64_t>(lane)) >> 32);
  }
  start(value);
  for (int block = 0; block < 16; ++block) {
    load_block(data + block * 64, kChunkBytes, m);
    // As many streams as lanes are too many for the processor to foresee: what the next call reads here.
    for (int lane = 0; lane < kLanes; ++lane) __builtin_prefetch(data + (kLanes + lane) * kChunkBytes + block * 64);
    compress(value, m, low, high, 64, (block == 0 ? kChunkStart : 0) | (block == 15 ? kChunkEnd : 0));
  }
  store(value, values);
}

void hash_parents(const uint32_t* children, uint32_t* values) {
  Lanes value[8], m[16];
  start(value);
  load_block(reinterpret_cast<const uint8_t*>(children), 64, m);
  compress(value, m, Lanes{}, Lanes{}, 64, kParent);
  store(value, values);
}

}  // namespace
}  // namespace qcompile
