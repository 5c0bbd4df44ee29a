// How the float body reads one line of codes: a Decoder is made once for a panel and has
//   kLineK             values of k of a line
//   kWords             vectors that a line becomes for each part of a block
//   factor(k)          what x is multiplied with beforehand
//   line(from, words)  one line of all parts
//   part(from)         one part of a line, where it becomes one vector
//   value<K>(words)    the value of one k
//
// Integers: (word & mask of a code) is u * 2^place, so the x of that k is multiplied by 2^-place beforehand (exact) and no shift is
// needed; only the code that reaches the sign bit is shifted down. 8-bit codes are made unsigned by flipping their sign bits.
// Others become float32 numbers, and x stays as it is.
#pragma once

#include "cpu/lookup.h"
#include "cpu/vectors.h"

#if defined(__AVX512VBMI__)
#include "cpu/float8_pairs.h"
#endif

namespace qcompile {
namespace {

template <int kBits>
struct Line {
  static constexpr int kLineK = 32 / kBits;
  static constexpr int kWords = 1;

  // Bit at which the code of a line's k begins.
  static constexpr int place(int k) { return kBits == 8 ? 8 * k : 4 * (k / 2 + k % 2 * 4); }

  static inline Words part(const uint8_t* from) { return load<Words>(from); }

  static inline void line(const uint8_t* from, Words (&words)[kParts][kWords]) {
    QCOMPILE_UNROLL for (int i = 0; i < kParts; ++i) words[i][0] = part(from + i * kWidth * 4);
  }
};

template <int kBits, Values kValues>
struct Decoder;

template <int kBits>
struct Decoder<kBits, Values::integers> : Line<kBits> {
  using Line<kBits>::place;
  static constexpr bool reaches_sign(int k) { return place(k) + kBits == 32; }
  static constexpr float factor(int k) { return reaches_sign(k) ? 1.0f : 1.0f / static_cast<float>(1u << place(k)); }

  explicit Decoder(const PackedWeight&) {}

  static inline Words part(const uint8_t* from) { return kBits == 8 ? load<Words>(from) ^ 0x00808080u : load<Words>(from); }

  static inline void line(const uint8_t* from, Words (&words)[kParts][1]) {
    QCOMPILE_UNROLL for (int i = 0; i < kParts; ++i) words[i][0] = part(from + i * kWidth * 4);
  }

  template <int K>
  inline Floats value(const Words (&words)[1]) const {
    constexpr uint32_t kCode = (1u << kBits) - 1;
    if constexpr (reaches_sign(K)) {
      if constexpr (kBits == 8) return to_floats(same_bits<Ints>(words[0]) >> 24);
      return to_floats(same_bits<Ints>(words[0] >> (32 - kBits)));
    }
    const Floats code = to_floats(same_bits<Ints>(words[0] & (kCode << (place(K) & 31))));
    // The sign bit of an 8-bit code was flipped: codes + 128. It leaves at once, since small codes would drown in it.
    return kBits == 8 ? code - static_cast<float>(uint64_t{128} << place(K)) : code;
  }
};

template <>
struct Decoder<4, Values::book> : Line<4> {
  static constexpr float factor(int) { return 1.0f; }

  Book book;

  explicit Decoder(const PackedWeight& weight) : book(weight.book) {}

  template <int K>
  inline Floats value(const Words (&words)[1]) const {
    return book(words[0] >> place(K));
  }
};

#if defined(__AVX512VBMI__)

template <Values kValues>
struct Float8 : Line<8> {
  static constexpr int kWords = 2;
  static constexpr float factor(int) { return 1.0f; }

  Float8Pairs pairs;

  explicit Float8(const PackedWeight&) : pairs(kValues == Values::e4m3 ? e4m3_to_float : e5m2_to_float) {}

  inline void line(const uint8_t* from, Words (&words)[kParts][kWords]) const {
    __m512i both[2];
    pairs.line(from, both);
    for (int i = 0; i < 2; ++i) words[0][i] = same_bits<Words>(both[i]);
  }

  template <int K>
  inline Floats value(const Words (&words)[kWords]) const {
    return same_bits<Floats>(K % 2 == 0 ? words[K / 2] << 16 : words[K / 2] & 0xffff0000u);
  }
};

#else

template <Values kValues>
struct Float8 : Line<8> {
  static constexpr float factor(int) { return 1.0f; }

  explicit Float8(const PackedWeight&) {}

  template <int K>
  inline Floats value(const Words (&words)[1]) const {
    const Words bytes = words[0] >> place(K) & 0xffu;
    return kValues == Values::e4m3 ? from_e4m3(bytes) : from_e5m2(bytes);
  }
};

#endif

template <>
struct Decoder<8, Values::e4m3> : Float8<Values::e4m3> {
  using Float8::Float8;
};

template <>
struct Decoder<8, Values::e5m2> : Float8<Values::e5m2> {
  using Float8::Float8;
};

}  // namespace
}  // namespace qcompile
