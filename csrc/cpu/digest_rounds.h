// The compression function of BLAKE3 for one word or for a vector of words, one for each message. Internal linkage, because files
// for several ISAs include it.
#pragma once

#include <cstdint>

#include "cpu/digest.h"

namespace qcompile {
namespace {

constexpr uint32_t kDigestStart[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
constexpr uint32_t kChunkStart = 1, kChunkEnd = 2, kParent = 4, kRoot = 8;

struct Schedule {
  uint8_t at[7][16];
};

// Every round takes the words of the block in the order of the round before, permuted.
constexpr Schedule make_schedule() {
  constexpr uint8_t kPermutation[16] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};
  Schedule schedule = {};
  for (int i = 0; i < 16; ++i) schedule.at[0][i] = static_cast<uint8_t>(i);
  for (int round = 1; round < 7; ++round)
    for (int i = 0; i < 16; ++i) schedule.at[round][i] = schedule.at[round - 1][kPermutation[i]];
  return schedule;
}
constexpr Schedule kSchedule = make_schedule();

template <class Lanes>
inline __attribute__((always_inline)) Lanes rotated(const Lanes& value, int by) {
  return (value >> by) | (value << (32 - by));
}

template <class Lanes>
inline __attribute__((always_inline)) void mix(Lanes& a, Lanes& b, Lanes& c, Lanes& d, const Lanes& x, const Lanes& y) {
  a = a + b + x;
  d = rotated(d ^ a, 16);
  c = c + d;
  b = rotated(b ^ c, 12);
  a = a + b + y;
  d = rotated(d ^ a, 8);
  c = c + d;
  b = rotated(b ^ c, 7);
}

template <int kRound, class Lanes>
inline __attribute__((always_inline)) void round(Lanes (&v)[16], const Lanes (&m)[16]) {
  constexpr const uint8_t (&s)[16] = kSchedule.at[kRound];
  mix(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
  mix(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
  mix(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
  mix(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
  mix(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
  mix(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
  mix(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
  mix(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
}

// `value`, the chaining value before, becomes the one after the block `m`.
template <class Lanes>
inline __attribute__((always_inline)) void compress(Lanes (&value)[8], const Lanes (&m)[16], const Lanes& low, const Lanes& high,
                                                    uint32_t bytes, uint32_t flags) {
  const Lanes none = low - low;
  Lanes v[16] = {value[0], value[1], value[2], value[3], value[4], value[5], value[6], value[7], none + kDigestStart[0],
                 none + kDigestStart[1], none + kDigestStart[2], none + kDigestStart[3], low, high, none + bytes, none + flags};
  round<0>(v, m);
  round<1>(v, m);
  round<2>(v, m);
  round<3>(v, m);
  round<4>(v, m);
  round<5>(v, m);
  round<6>(v, m);
  for (int i = 0; i < 8; ++i) value[i] = v[i] ^ v[i + 8];
}

}  // namespace
}  // namespace qcompile
