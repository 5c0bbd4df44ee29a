// Integer codes of 1 to 7 bits at their own width with pairs of bfloat16 (AVX512_BF16).
//
// A code below 128 ORed into the bit pattern 0x4300 is the bfloat16 number 128 + u exactly: a shift and one VPTERNLOGD make a pair of
// 16 outputs, one of each for every piece of codes that lie in pieces. The 128 and the zero point leave with one multiple of the sum
// of x per group. Rows of x: bf16_rows.h.
// For few rows codes are decoded on the way to the multiplier; for more they are decoded once into the first cache.
#pragma once

#include "cpu/bf16_rows.h"
#include "cpu/planes_body.h"

namespace qcompile {
namespace {

template <int kBits>
struct PlanesBf16Body {
  static constexpr int64_t kMostRows = 16;
  static constexpr int kFused = 3, kHalfPairs = 8;
  using Half = std::make_integer_sequence<int, kHalfPairs>;

  static int64_t parts(Dtype dtype) { return dtype == Dtype::fp16 ? 2 : 1; }

  // A prepared panel of R rows: [groups][R] sums of x, then [pairs of k][R] pairs.
  static int64_t row_bytes(const PlanesShape& shape) { return shape.padded_k() * 2 + shape.groups() * 4; }

  // ORs piece number N of a pair into `pair`.
  template <int kPair, int N>
  static inline __m512i with_piece(const uint8_t* tile, __m512i pair) {
    constexpr Piece piece = Fields<kBits>::nth_piece(kPair, N);
    constexpr int mask = ((1 << piece.bits) - 1) << piece.to;
    __m512i word = _mm512_loadu_si512(tile + piece.word * kLineBytes);
    if constexpr (piece.at > piece.to) word = _mm512_srli_epi32(word, piece.at - piece.to);
    if constexpr (piece.at < piece.to) word = _mm512_slli_epi32(word, piece.to - piece.at);
    return _mm512_ternarylogic_epi32(word, _mm512_set1_epi32(mask | mask << 16), pair, 0xea);  // (a & b) | c
  }

  template <int kPair, int... N>
  static inline __m512i decode(const uint8_t* tile, std::integer_sequence<int, N...>) {
    __m512i pair = _mm512_set1_epi32(0x43004300);
    ((pair = with_piece<kPair, N>(tile, pair)), ...);
    return pair;
  }

  template <int kPair>
  static inline __m512i decode(const uint8_t* tile) {
    return decode<kPair>(tile, std::make_integer_sequence<int, Fields<kBits>::pieces(kPair)>());
  }

  template <int R>
  static constexpr int chains() {
    return R <= 3 ? 4 : R <= 7 ? 2 : 1;
  }

  template <int R, int kPair>
  static inline void add_pair(const uint8_t* tile, const uint32_t* x, __m512 (&sum)[R][chains<R>()]) {
    const __m512bh w = reinterpret_cast<__m512bh>(decode<kPair>(tile));
    QCOMPILE_UNROLL for (int r = 0; r < R; ++r)
      sum[r][kPair % chains<R>()] = _mm512_dpbf16_ps(sum[r][kPair % chains<R>()], w, pair_of(x + kPair % kHalfPairs * R + r));
  }

  template <int R, int kHalf, int... P>
  static inline void add_half(const uint8_t* tile, const uint32_t* x, __m512 (&sum)[R][chains<R>()], std::integer_sequence<int, P...>) {
    fetch_half<kBits, kHalf, Fetch::twice>(tile);
    (add_pair<R, kHalf * kHalfPairs + P>(tile, x, sum), ...);
  }

  template <int kHalf, int... P>
  static inline void decode_half(const uint8_t* tile, __m512i* to, std::integer_sequence<int, P...>) {
    fetch_half<kBits, kHalf, Fetch::once>(tile);
    (_mm512_storeu_si512(to + P, decode<kHalf * kHalfPairs + P>(tile)), ...);
  }

  static __attribute__((noinline)) void decode_run(const uint8_t* tiles, int64_t half, int64_t count, __m512i* to) {
    for (int64_t i = half; i < half + count; ++i, to += kHalfPairs) {
      const uint8_t* const tile = tiles + i / 2 * kBits * kLineBytes;
      if (i % 2 == 0)
        decode_half<0>(tile, to, Half());
      else
        decode_half<1>(tile, to, Half());
    }
  }

  template <int R, int kChain>
  static inline void multiply_one(__m512i weights, const uint32_t* x, __m512 (&sum)[R][chains<R>()]) {
    const __m512bh w = reinterpret_cast<__m512bh>(weights);
    QCOMPILE_UNROLL for (int r = 0; r < R; ++r) sum[r][kChain] = _mm512_dpbf16_ps(sum[r][kChain], w, pair_of(x + kChain * R + r));
  }

  template <int R, int... C>
  static inline void multiply_pairs(const __m512i* weights, const uint32_t* x, int64_t count, __m512 (&sum)[R][chains<R>()],
                                    std::integer_sequence<int, C...>) {
    for (int64_t p = 0; p < count; p += chains<R>(), x += chains<R>() * R)
      (multiply_one<R, C>(_mm512_loadu_si512(weights + p + C), x, sum), ...);
  }

  template <int R>
  static inline void add_run(const uint8_t* tiles, int64_t half, int64_t count, const uint32_t* x, __m512 (&sum)[R][chains<R>()]) {
    if constexpr (R > kFused) {
      __m512i weights[kRunHalves * kHalfPairs];
      decode_run(tiles, half, count, weights);
      multiply_pairs<R>(weights, x, count * kHalfPairs, sum, std::make_integer_sequence<int, chains<R>()>());
    } else {
      for (int64_t i = half; i < half + count; ++i, x += kHalfPairs * R) {
        const uint8_t* const tile = tiles + i / 2 * kBits * kLineBytes;
        if (i % 2 == 0)
          add_half<R, 0>(tile, x, sum, Half());
        else
          add_half<R, 1>(tile, x, sum, Half());
      }
    }
  }

  template <int R>
  static void run_panel(const PanelArgsOf<PlanesWeight>& args) {
    const PlanesWeight& weight = *args.weight;
    const PlanesShape& shape = weight.shape;
    const int64_t groups = shape.groups(), halves = shape.group_halves();
    const float* const sums = reinterpret_cast<const float*>(args.panel);
    Meta meta;
    begin_meta(weight, &meta);
    for (int64_t block = args.begin; block < args.end; ++block) {
      const uint8_t* const tiles = weight.codes + block * shape.lines() * kLineBytes;
      __m512 total[R];
      for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
      const uint32_t* x = reinterpret_cast<const uint32_t*>(args.panel + groups * R * 4);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t place = g % Meta::kGroups;
        if (place == 0) read_meta(weight, block, g, smaller(Meta::kGroups, groups - g), &meta);
        const __m512 taken_off = _mm512_sub_ps(_mm512_set1_ps(-128.0f), _mm512_load_ps(meta.zero[place]));
        __m512 sum[R][chains<R>()];
        QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
          sum[r][0] = _mm512_mul_ps(taken_off, _mm512_set1_ps(sums[g * R + r]));
          for (int c = 1; c < chains<R>(); ++c) sum[r][c] = _mm512_setzero_ps();
        }
        for (int64_t run = 0; run < halves; run += kRunHalves) {
          const int64_t count = smaller(kRunHalves, halves - run);
          add_run<R>(tiles, g * halves + run, count, x, sum);
          x += count * kHalfPairs * R;
        }
        const __m512 scale = _mm512_load_ps(meta.scale[place]);
        QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
          total[r] = _mm512_fmadd_ps(sum_of(sum[r]), scale, total[r]);
          if (weight.offsets != nullptr)
            total[r] = _mm512_fmadd_ps(_mm512_load_ps(meta.offset[place]), _mm512_set1_ps(sums[g * R + r]), total[r]);
        }
      }
      store_block_512<R>(args, block * kBlock, total);
    }
  }

  static void prepare_panel(const PlanesWeight& weight, const LinearInput& input, uint8_t* out, int64_t first, int64_t count) {
    prepare_pairs(weight.shape, input, 1.0f, out, first, count);
  }
};

}  // namespace
}  // namespace qcompile
