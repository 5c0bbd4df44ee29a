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

// One of the two, scale or offset, as it is stored.
struct Level {
  NumberKind kind, outer_kind;
  const uint8_t *numbers, *outer;
  float bias;  // of integers
};

// Half a tile of integers of the inner level as floats.
template <int kBits, int kFirst, int... J>
inline void read_fields(const uint8_t* tile, float (*to)[kBlock], std::integer_sequence<int, J...>) {
  for (int part = 0; part < kParts; ++part) {
    const auto word = [&](int i) { return load<Words>(tile + i * kLineBytes + part * kWidth * 4); };
    const auto put = [&](int j, const Words& bits, float unit) {
      const Floats number = to_floats(same_bits<Ints>(bits)) * unit;
      std::memcpy(to[j] + part * kWidth, &number, sizeof number);
    };
    (put(J, bits_at<kBits, kFirst + J>(word), 1.0f / static_cast<float>(1u << Place<kBits, kFirst + J>::bit)), ...);
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

// One level of `count` groups from `first` on. inner: [fields][16] of these groups, every `step`-th of which is meant.
inline void read_level(const PlanesShape& shape, const Level& level, int64_t block, int64_t first, int64_t count,
                       const float (*inner)[kBlock], int64_t step, float (*to)[kBlock]) {
  const int64_t begin = block * shape.groups() + first, each = shape.groups_per_outer();
  int64_t h = first / each, end = (h + 1) * each - first;  // groups that share an outer scale
  for (int64_t i = 0; i < count; ++h, end += each) {
    const int64_t until = smaller(end, count), outer = (block * shape.outer_groups() + h) * kBlock;
    for (int part = 0; part < kParts; ++part) {
      const Floats factor = level.outer == nullptr ? all(1.0f) : load_numbers(level.outer_kind, level.outer, outer + part * kWidth);
      for (int64_t j = i; j < until; ++j) {
        const Floats number = level.kind == NumberKind::inner
                                  ? load<Floats>(inner[j * step] + part * kWidth) - level.bias
                                  : load_numbers(level.kind, level.numbers, (begin + j) * kBlock + part * kWidth);
        const Floats scaled = number * factor;
        std::memcpy(to[j] + part * kWidth, &scaled, sizeof scaled);
      }
    }
    i = until;
  }
}

inline float bias_of(const PlanesShape& shape, uint8_t flag) {
  return shape.has(flag) ? static_cast<float>(1 << (shape.inner_bits - 1)) : 0.0f;
}

inline void read_zeros(const PlanesWeight& weight, int64_t first, int64_t count, float (*to)[kBlock]) {
  const bool is_signed = weight.shape.bits == 8;
  for (int64_t i = 0; i < count; ++i)
    for (int part = 0; part < kParts; ++part) {
      Words zero = load_bytes(weight.zeros + (first + i) * kBlock + part * kWidth);
      if (is_signed) zero = same_bits<Words>(same_bits<Ints>(zero << 24) >> 24);
      const Floats number = to_floats(same_bits<Ints>(zero));
      std::memcpy(to[i] + part * kWidth, &number, sizeof number);
    }
}

// What is the same for all groups.
inline void begin_meta(const PlanesWeight& weight, Meta* meta) {
  for (auto& group : meta->zero)
    for (float& zero : group) zero = static_cast<float>(weight.shape.implied_zero());
}

// What is needed of `count` groups of a block, from `first`, a multiple of Meta::kGroups, on; not inlined, as every number of rows has
// the same.
[[maybe_unused]] __attribute__((noinline)) void read_meta(const PlanesWeight& weight, int64_t block, int64_t first, int64_t count, Meta* meta) {
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
  if (weight.zeros != nullptr) read_zeros(weight, block * shape.groups() + first, count, meta->zero);
}

}  // namespace
}  // namespace qcompile
