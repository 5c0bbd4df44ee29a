// 4-bit and 8-bit weights with pairs of bfloat16 (AVX512_BF16).
//
// 4 bit: a nibble ORed into the bit pattern 0x4300 is the bfloat16 number 128 + u exactly, so one load of 64 bytes gives four
// vectors of weight pairs with three shifts and four VPTERNLOGD; the 128 and the zero point leave with one multiple of the
// sum of x per group.
// 8 bit: a byte is made a float32 by putting it, sign bit flipped, into the mantissa of a large power of two that is then
// subtracted; -128..127 fills no more than the upper half of the float32, which is the bfloat16.
// Code book of bfloat16 numbers: one VPERMW of a shifted line looks up 32 of them. Numbers of 8 bits: float8_pairs.h.
// Rows of x: bf16_rows.h.
// Decoding again for every panel of 16 rows is cheaper than decoding once into memory and loading: it runs on ports that
// the multiplier leaves free.
// Instructions: https://www.intel.com/content/www/us/en/docs/intrinsics-guide (VDPBF16PS, VPTERNLOGD, VCVTNEPS2BF16).
#pragma once

#include "cpu/bf16_rows.h"

#if defined(__AVX512VBMI__)
#include "cpu/float8_pairs.h"
#endif

namespace qcompile {
namespace {

inline __m512 load_scales_512(const PackedWeight& weight, int64_t meta) {
  if (weight.shape.shared_scales) return _mm512_set1_ps(shared_scale(weight, meta / kBlock));
  if (weight.shape.scale_kind == ScaleKind::f32) return _mm512_loadu_ps(weight.scales + meta * 4);
  if (weight.shape.scale_bytes() == 1) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight.scales + meta));
    if (weight.shape.scale_kind == ScaleKind::e8m0) {
      const __m512i exponents = _mm512_cvtepu8_epi32(bytes);
      const __m512i least = _mm512_maskz_set1_epi32(_mm512_testn_epi32_mask(exponents, exponents), 0x00400000);
      return _mm512_castsi512_ps(_mm512_or_si512(_mm512_slli_epi32(exponents, 23), least));
    }
    // In the place of float16's exponent, of a larger bias, E4M3 is 2^8 times smaller; both have subnormals.
    const __m256i wide = _mm256_cvtepi8_epi16(bytes);
    const __m256i halves = _mm256_or_si256(_mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7),
                                           _mm256_and_si256(wide, _mm256_set1_epi16(static_cast<int16_t>(0x8000))));
    return _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(256.0f));
  }
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight.scales + meta * 2));
  if (weight.shape.scale_kind == ScaleKind::fp16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// What one unit of the sum of x is worth, with zero points.
template <int kBits>
inline __m512 load_offsets(const PackedWeight& weight, int64_t meta) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight.zeros + meta));
  if constexpr (kBits == 8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(128)));
}

// Pairs of k of a line, in order.
template <int kBits>
struct Decoded {
  __m512bh pairs[kBits == 4 ? 4 : 2];
};

inline __m512bh decode_nibbles(__m512i line) {
  return reinterpret_cast<__m512bh>(
      _mm512_ternarylogic_epi32(line, _mm512_set1_epi32(0x000f000f), _mm512_set1_epi32(0x43004300), 0xea));
}

// Bytes 0 and 1 of each word, as a pair. (byte ^ 0x80) in the mantissa of 2^23 is 2^23 + 128 + byte, in that of 2^15, eight
// bits further up, 2^15 + 128 + byte.
inline __m512bh decode_bytes(__m512i line) {
  constexpr int kAndXor = 0x6a;  // (a & b) ^ c
  const __m512i low = _mm512_ternarylogic_epi32(line, _mm512_set1_epi32(0x000000ff), _mm512_set1_epi32(0x4b000080), kAndXor);
  const __m512i high = _mm512_ternarylogic_epi32(line, _mm512_set1_epi32(0x0000ff00), _mm512_set1_epi32(0x47008000), kAndXor);
  const __m512 first = _mm512_sub_ps(_mm512_castsi512_ps(low), _mm512_set1_ps(8388608.0f + 128.0f));
  const __m512 second = _mm512_sub_ps(_mm512_castsi512_ps(high), _mm512_set1_ps(32768.0f + 128.0f));
  return reinterpret_cast<__m512bh>(_mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(first), 16), _mm512_castps_si512(second)));
}

// How a line becomes pairs; made once for a panel.
template <int kBits, Values kValues>
struct PairsOf;

template <>
struct PairsOf<4, Values::integers> {
  explicit PairsOf(const PackedWeight&) {}

  Decoded<4> operator()(const uint8_t* line) const {
    const __m512i codes = _mm512_loadu_si512(line);
    return {{decode_nibbles(codes), decode_nibbles(_mm512_srli_epi32(codes, 4)), decode_nibbles(_mm512_srli_epi32(codes, 8)),
             decode_nibbles(_mm512_srli_epi32(codes, 12))}};
  }
};

template <>
struct PairsOf<8, Values::integers> {
  explicit PairsOf(const PackedWeight&) {}

  Decoded<8> operator()(const uint8_t* line) const {
    const __m512i codes = _mm512_loadu_si512(line);
    return {{decode_bytes(codes), decode_bytes(_mm512_srli_epi32(codes, 16))}};
  }
};

template <>
struct PairsOf<4, Values::book> {
  __m512i book;  // as bfloat16, twice over, because VPERMW takes five bits of an index

  explicit PairsOf(const PackedWeight& weight)
      : book(_mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_loadu_si512(weight.book), 16)))) {}

  Decoded<4> operator()(const uint8_t* line) const {
    const __m512i codes = _mm512_loadu_si512(line);
    const auto pairs = [this](__m512i index) { return reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(index, book)); };
    return {{pairs(codes), pairs(_mm512_srli_epi32(codes, 4)), pairs(_mm512_srli_epi32(codes, 8)), pairs(_mm512_srli_epi32(codes, 12))}};
  }
};

#if defined(__AVX512VBMI__)
template <Values kValues>
struct PairsOf<8, kValues> {
  Float8Pairs pairs;

  explicit PairsOf(const PackedWeight&) : pairs(kValues == Values::e4m3 ? e4m3_to_float : e5m2_to_float) {}

  Decoded<8> operator()(const uint8_t* line) const {
    __m512i both[2];
    pairs.line(line, both);
    return {{reinterpret_cast<__m512bh>(both[0]), reinterpret_cast<__m512bh>(both[1])}};
  }
};
#endif

template <int kBits, Values kValues = Values::integers>
struct Bf16Body {
  static constexpr int64_t kMostRows = 16;  // sums and decoded weights fill the registers; totals wait in memory
  static constexpr int64_t kLineK = 32 / kBits;
  static constexpr int kLinePairs = 16 / kBits;

  static int64_t parts(Dtype dtype) { return dtype == Dtype::fp16 ? 2 : 1; }

  // A prepared panel of R rows: [groups][R] sums of x times -1 (times -136 or 0 without zero points: where a sum then
  // begins; 0 for others than integers), then [pairs of k][R] pairs.
  static int64_t row_bytes(const PackedShape& shape) { return shape.padded_k() * 2 + shape.groups() * 4; }

  template <int R>
  static void run_panel(const PanelArgs& args) {
    // VDPBF16PS takes some 6 cycles and one starts every cycle: few rows need several chains each.
    constexpr int kChains = R <= 3 && kLinePairs == 4 ? 4 : R <= 7 ? 2 : 1;
    const PackedWeight& weight = *args.weight;
    const int64_t groups = weight.shape.groups(), group_lines = weight.shape.group_lines();
    const float* const sums = reinterpret_cast<const float*>(args.panel);
    const uint32_t* const pairs = reinterpret_cast<const uint32_t*>(args.panel + groups * R * 4);
    const uint8_t* line = weight.codes + args.begin * weight.shape.lines() * kLineBytes;
    const PairsOf<kBits, kValues> pairs_of(weight);
    for (int64_t block = args.begin; block < args.end; ++block) {
      __m512 total[R];
      for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
      const uint32_t* x = pairs;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t meta = (block * groups + g) * kBlock;
        __m512 sum[R][kChains];
        QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
          sum[r][0] = _mm512_set1_ps(sums[g * R + r]);
          for (int c = 1; c < kChains; ++c) sum[r][c] = _mm512_setzero_ps();
        }
        if (weight.zeros != nullptr) {
          const __m512 offset = load_offsets<kBits>(weight, meta);
          QCOMPILE_UNROLL for (int r = 0; r < R; ++r) sum[r][0] = _mm512_mul_ps(offset, sum[r][0]);
        }
        for (int64_t l = 0; l < group_lines; ++l, line += kLineBytes, x += kLinePairs * R) {
          fetch_ahead<R <= (kBits == 4 ? 5 : 8) ? Fetch::twice : Fetch::once>(line);
          const Decoded<kBits> w = pairs_of(line);
          for (int p = 0; p < kLinePairs; ++p)
            for (int r = 0; r < R; ++r)
              sum[r][p % kChains] = _mm512_dpbf16_ps(sum[r][p % kChains], w.pairs[p], pair_of(x + p * R + r));
        }
        const __m512 scale = load_scales_512(weight, meta);
        QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
          total[r] = _mm512_fmadd_ps(sum_of(sum[r]), scale, total[r]);
        }
      }
      if (weight.outer != nullptr) {
        const __m512 outer = _mm512_loadu_ps(weight.outer + block * kBlock * 4);
        for (int r = 0; r < R; ++r) total[r] = _mm512_mul_ps(total[r], outer);
      }
      store_block_512<R>(args, block * kBlock, total);
    }
  }

  static void prepare_panel(const PackedWeight& weight, const LinearInput& input, uint8_t* out, int64_t first, int64_t count) {
    const float worth = kValues != Values::integers ? 0.0f : weight.zeros != nullptr ? -1.0f : kBits == 4 ? -136.0f : 0.0f;
    prepare_pairs(weight.shape, input, worth, out, first, count);
  }
};

}  // namespace
}  // namespace qcompile
