// Scales, offsets and zero points of some groups of one block as float32, whatever they are stored as (cpu/planes.h).
#pragma once

#include "cpu/planes.h"
#include "cpu/vectors.h"

namespace qcompile {
namespace {

template <int kBits, int kPosition>
struct Place {
  static constexpr int pair = kPosition / 2, side = kPosition % 2 * 16;
  static constexpr bool whole = Fields<kBits>::whole(pair);
  static constexpr Piece first = Fields<kBits>::nth_piece(pair, 0);
  static constexpr bool reaches_sign = whole && first.at + side + kBits == 32;
  // Bit of the integer that `bits_at` gives at which the code begins.
  static constexpr int bit = whole && !reaches_sign ? first.at + side : 0;
};

// Bits [from, from + n) of every lane at `to`, nothing else.
template <int kFrom, int kTo, int kCount>
inline Words moved(const Words& word) {
  constexpr uint32_t mask = ((1u << kCount) - 1) << kTo;
  if constexpr (kFrom >= kTo) return (word >> (kFrom - kTo)) & mask;
  return (word << (kTo - kFrom)) & mask;
}

// The code at a position of a tile as an integer times 2^Place::bit; `load_word(i)` gives word i of the tile.
template <int kBits, int kPosition, class Load, int... N>
inline Words gathered(const Load& load_word, std::integer_sequence<int, N...>) {
  using At = Place<kBits, kPosition>;
  return (... | moved<Fields<kBits>::nth_piece(At::pair, N).at + At::side, Fields<kBits>::nth_piece(At::pair, N).to,
                      Fields<kBits>::nth_piece(At::pair, N).bits>(load_word(Fields<kBits>::nth_piece(At::pair, N).word)));
}

template <int kBits, int kPosition, class Load>
inline Words bits_at(const Load& load_word) {
  using At = Place<kBits, kPosition>;
  if constexpr (At::reaches_sign) return load_word(At::first.word) >> (32 - kBits);
  if constexpr (At::whole) return load_word(At::first.word) & (((1u << kBits) - 1) << (At::bit & 31));
  return gathered<kBits, kPosition>(load_word, std::make_integer_sequence<int, Fields<kBits>::pieces(At::pair)>());
}

// kWidth numbers of a kind, from index `at` on.
inline Floats load_numbers(NumberKind kind, const uint8_t* from, int64_t at) {
  if (kind == NumberKind::f32) return load<Floats>(from + at * 4);
#if defined(__AVX512F__) && QCOMPILE_WIDTH == 16
  const __m256i half = load<__m256i>(from + at * 2);
  if (kind == NumberKind::fp16) return same_bits<Floats>(_mm512_cvtph_ps(half));
  return same_bits<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#elif defined(__AVX2__) && defined(__F16C__) && QCOMPILE_WIDTH == 8
  const __m128i half = load<__m128i>(from + at * 2);
  if (kind == NumberKind::fp16) return same_bits<Floats>(_mm256_cvtph_ps(half));
  return same_bits<Floats>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
#else
  uint16_t half[kWidth];
  std::memcpy(half, from + at * 2, sizeof half);
  Floats numbers;
  for (int i = 0; i < kWidth; ++i) numbers[i] = kind == NumberKind::bf16 ? bf16_to_float(half[i]) : fp16_to_float(half[i]);
  return numbers;
#endif
}

struct Meta {
  static constexpr int64_t kGroups = 16;
  // [group][output]: u - zero times scale plus offset is the weight.
  alignas(64) float scale[kGroups][kBlock];
  alignas(64) float offset[kGroups][kBlock];
  alignas(64) float zero[kGroups][kBlock];
};

template <int kBits, int kFirst, int... J>
inline void read_fields(const uint8_t* tile, float (*to)[kBlock], std::integer_sequence<int, J...>) {
  for (int part = 0; part < kParts; ++part) {
    const auto word = [&](int i) { return load<Words>(tile + i * kLineBytes + part * kWidth * 4); };
    const auto put = [&](int j, const Words& bits, int bit) {
      const Floats number = to_floats(same_bits<Ints>(bits >> bit));
      std::memcpy(to[j] + part * kWidth, &number, sizeof number);
    };
    (put(J, bits_at<kBits, kFirst + J>(word), Place<kBits, kFirst + J>::bit), ...);
  }
}

// Fields [half * 16, half * 16 + 16) of inner tiles, without the bias taken off.
inline void read_inner(const PlanesWeight& weight, int64_t block, int64_t half, float (*to)[kBlock]) {
  const PlanesShape& shape = weight.shape;
  const uint8_t* const tile = weight.inner + (block * shape.inner_tiles() + half / 2) * shape.inner_bits * kLineBytes;
  constexpr auto all_fields = std::make_integer_sequence<int, 16>();
  const bool second = half % 2 != 0;
  switch (shape.inner_bits) {
    case 4: return second ? read_fields<4, 16>(tile, to, all_fields) : read_fields<4, 0>(tile, to, all_fields);
    case 6: return second ? read_fields<6, 16>(tile, to, all_fields) : read_fields<6, 0>(tile, to, all_fields);
    default: return second ? read_fields<8, 16>(tile, to, all_fields) : read_fields<8, 0>(tile, to, all_fields);
  }
}

// One of scale and offset of `count` groups from `first` on. inner: [fields][16] of these groups, every `step`-th of which is meant.
struct Level {
  NumberKind kind, outer_kind;
  const uint8_t *numbers, *outer;
  float bias;
};

inline void read_level(const PlanesShape& shape, const Level& level, int64_t block, int64_t first, int64_t count,
                       const float (*inner)[kBlock], int64_t step, float (*to)[kBlock]) {
  const int64_t groups = shape.groups(), outer_groups = shape.outer_groups(), each = shape.groups_per_outer();
  for (int64_t i = 0; i < count; ++i) {
    for (int part = 0; part < kParts; ++part) {
      Floats number = level.kind == NumberKind::inner
                          ? load<Floats>(inner[i * step] + part * kWidth) - level.bias
                          : load_numbers(level.kind, level.numbers, (block * groups + first + i) * kBlock + part * kWidth);
      if (level.outer != nullptr)
        number *= load_numbers(level.outer_kind, level.outer, (block * outer_groups + (first + i) / each) * kBlock + part * kWidth);
      std::memcpy(to[i] + part * kWidth, &number, sizeof number);
    }
  }
}

inline float bias_of(const PlanesShape& shape, uint8_t flag) {
  return shape.has(flag) ? static_cast<float>(1 << (shape.inner_bits - 1)) : 0.0f;
}

// What is needed of `count` groups of a block, from `first`, a multiple of Meta::kGroups, on.
inline void read_meta(const PlanesWeight& weight, int64_t block, int64_t first, int64_t count, Meta* meta) {
  const PlanesShape& shape = weight.shape;
  alignas(64) float inner[2 * Meta::kGroups][kBlock];
  const int64_t fields = shape.inner_fields();
  for (int64_t i = 0; i * Meta::kGroups < count * fields; ++i)
    read_inner(weight, block, first / Meta::kGroups * fields + i, inner + i * Meta::kGroups);
  const Level scale = {shape.scales, shape.outer, weight.scales, weight.outer, bias_of(shape, kSignedScales)};
  read_level(shape, scale, block, first, count, inner, fields, meta->scale);
  if (weight.offsets != nullptr) {
    const Level offset = {shape.offsets, shape.outer_offset, weight.offsets, weight.outer_offset, bias_of(shape, kSignedOffsets)};
    read_level(shape, offset, block, first, count, inner + (fields == 2 ? 1 : 0), fields, meta->offset);
  }
  for (int64_t i = 0; i < count; ++i)
    for (int lane = 0; lane < kBlock; ++lane) {
      const uint8_t* const at = weight.zeros + (block * shape.groups() + first + i) * kBlock + lane;
      const int zero = weight.zeros == nullptr ? shape.implied_zero() : shape.bits == 8 ? static_cast<int8_t>(*at) : *at;
      meta->zero[i][lane] = static_cast<float>(zero);
    }
}

}  // namespace
}  // namespace qcompile
