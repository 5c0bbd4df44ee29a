// Codes of 1 to 8 bits at their own width: 32 of them, of one output each, in as many 32-bit words as a code has bits.
//
// Position 2p of a tile lies in the low half of its word and position 2p + 1 at the same place of the high half, so that one shift and
// one mask leave a pair. Half a word holds 16 / bits whole codes, from the lowest bit up, word after word: pairs 0, 1, 2, ... What is
// left of each half (1 bit of 16 for 3 and 5 bits, 4 for 6, 2 for 7) holds the last pairs, bit after bit through all words. So 3 bits
// take exactly 3 bits: 15 pairs whole, and the last one from three words.
#pragma once

#include <cstdint>

namespace qcompile {

constexpr int64_t kTileK = 32, kHalfK = 16;  // positions of a tile, and of half of it: scales change between halves

// Bits of a pair that lie together: `bits` of them from bit `at` of half a word on, which are the code's bits from `to` on.
struct Piece {
  int word, at, bits, to;
};

template <int kBits>
struct Fields {
  static constexpr int kWhole = 16 / kBits;  // codes in half a word
  static constexpr int kSpare = 16 - kWhole * kBits;
  static constexpr int kWholePairs = kWhole * kBits;

  static constexpr bool whole(int pair) { return pair < kWholePairs; }

  // The piece that holds bit `from` of the code and what follows it there.
  static constexpr Piece piece(int pair, int from) {
    if (whole(pair)) return {pair / kWhole, pair % kWhole * kBits + from, kBits - from, from};
    constexpr int spare = kSpare == 0 ? 1 : kSpare;
    const int bit = (pair - kWholePairs) * kBits + from;
    const int here = spare - bit % spare, wanted = kBits - from;
    return {bit / spare, kWhole * kBits + bit % spare, here < wanted ? here : wanted, from};
  }

  static constexpr int pieces(int pair) {
    int count = 0;
    for (int from = 0; from < kBits; from += piece(pair, from).bits) ++count;
    return count;
  }

  static constexpr Piece nth_piece(int pair, int n) {
    int from = 0;
    for (int i = 0; i < n; ++i) from += piece(pair, from).bits;
    return piece(pair, from);
  }
};

// The words of 32 codes (unsigned).
template <int kBits>
inline void to_words(const uint8_t* codes, uint32_t* words) {
  for (int word = 0; word < kBits; ++word) words[word] = 0;
  for (int pair = 0; pair < 16; ++pair) {
    const uint32_t both = codes[2 * pair] | static_cast<uint32_t>(codes[2 * pair + 1]) << 16;
    for (int from = 0; from < kBits;) {
      const Piece piece = Fields<kBits>::piece(pair, from);
      const uint32_t mask = (1u << piece.bits) - 1;
      words[piece.word] |= (both >> from & (mask | mask << 16)) << piece.at;
      from += piece.bits;
    }
  }
}

// One code of those words.
template <int kBits>
inline uint32_t from_words(const uint32_t* words, int position) {
  uint32_t code = 0;
  for (int from = 0; from < kBits;) {
    const Piece piece = Fields<kBits>::piece(position / 2, from);
    code |= (words[piece.word] >> (piece.at + position % 2 * 16) & ((1u << piece.bits) - 1)) << from;
    from += piece.bits;
  }
  return code;
}

}  // namespace qcompile
