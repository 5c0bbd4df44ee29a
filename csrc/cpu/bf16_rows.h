// Rows of x as pairs of bfloat16, and the results of a block of outputs stored from them (AVX512_BF16).
//
// float16 input is split exactly into two bfloat16 rows (high and low part) whose results are added.
#pragma once

#include <immintrin.h>

#include "cpu/vectors.h"

namespace qcompile {
namespace {

inline __mmask16 lanes_of(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

template <class Args>
inline __m512 load_bias(const Args& args, int64_t column) {
  if (args.output.bias == nullptr) return _mm512_setzero_ps();
  return _mm512_maskz_loadu_ps(lanes_of(args.weight->shape.n - column), args.output.bias + column);
}

template <class Args>
inline void store_row_512(const Args& args, int64_t row, int64_t column, __m512 value) {
  const __mmask16 lanes = lanes_of(args.weight->shape.n - column);
  uint16_t* at = static_cast<uint16_t*>(args.output.y) + row * args.output.stride + column;
  const __m256i half = args.dtype == Dtype::fp16
                           ? _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                           : reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
  _mm256_mask_storeu_epi16(at, lanes, half);
}

inline __m512bh pair_of(const uint32_t* pair) { return reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(*pair))); }

// The results of a block of outputs, from the sums of every row or of both parts of it.
template <int R, class Args>
inline void store_block_512(const Args& args, int64_t column, const __m512 (&total)[R]) {
  const __m512 bias = load_bias(args, column);
  if (args.dtype == Dtype::fp16) {
    for (int r = 0; r + 1 < R; r += 2) store_row_512(args, r / 2, column, _mm512_add_ps(_mm512_add_ps(total[r], total[r + 1]), bias));
  } else {
    for (int r = 0; r < R; ++r) store_row_512(args, r, column, _mm512_add_ps(total[r], bias));
  }
}

// The sum of 1, 2 or 4 chains.
template <int kChains>
inline __m512 sum_of(const __m512 (&chains)[kChains]) {
  if constexpr (kChains == 2) return _mm512_add_ps(chains[0], chains[1]);
  if constexpr (kChains == 4) return _mm512_add_ps(_mm512_add_ps(chains[0], chains[1]), _mm512_add_ps(chains[2], chains[3]));
  return chains[0];
}

// `count` values of one row of x from position k on as one or two parts of bfloat16, zero up to `padded`.
constexpr int64_t kPiece = 512;
inline void stage(const LinearInput& input, int64_t row, int64_t k, int64_t count, int64_t padded, uint16_t parts[2][kPiece]) {
  const uint16_t* x = static_cast<const uint16_t*>(input.x) + row * input.stride;
  if (input.perm == nullptr) {
    __builtin_memcpy(parts[0], x + k, static_cast<size_t>(count) * 2);
  } else {
    for (int64_t i = 0; i < count; ++i) parts[0][i] = x[input.perm[k + i]];
  }
  for (int64_t i = count; i < padded; ++i) parts[0][i] = 0;
  if (input.dtype != Dtype::fp16) return;
  for (int64_t i = 0; i < padded; i += 16) {
    const __mmask16 lanes = lanes_of(padded - i);
    const __m512 value = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, parts[0] + i));
    // The high part is cut, not rounded: the rest then has at most 3 significant bits and the sign of the value.
    const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(value), 16);
    const __m512 low = _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
    _mm256_mask_storeu_epi16(parts[0] + i, lanes, _mm512_cvtepi32_epi16(high));
    _mm256_mask_storeu_epi16(parts[1] + i, lanes, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(low)));
  }
}

inline __m512 add_sums(__m512 sum, const uint16_t* values, int64_t count) {
  const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80));
  for (int64_t i = 0; i < count; i += 32) {
    const __mmask32 lanes = count - i >= 32 ? 0xffffffffu : (1u << (count - i)) - 1;
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(lanes, values + i)), ones);
  }
  return sum;
}

// Rows [first, first + count) as a panel of R rows, one or two for each: [groups][R] sums of x times `worth`, then [pairs of k][R] pairs.
template <class Shape>
inline void prepare_pairs(const Shape& shape, const LinearInput& input, float worth, uint8_t* out, int64_t first, int64_t count) {
  const int64_t split = input.dtype == Dtype::fp16 ? 2 : 1, rows = count * split, groups = shape.groups(), group_k = shape.group_k();
  float* const sums = reinterpret_cast<float*>(out);
  uint32_t* const pairs = reinterpret_cast<uint32_t*>(out + groups * rows * 4);
  alignas(64) uint16_t staged[2][kPiece];
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t group_end = smaller((g + 1) * shape.group, shape.k);
      __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (int64_t at = 0; at < group_k; at += kPiece) {
        const int64_t k = g * shape.group + at, padded = smaller(kPiece, group_k - at);
        stage(input, first + row, k, larger(0, smaller(padded, group_end - k)), padded, staged);
        for (int64_t part = 0; part < split; ++part) {
          if (worth != 0.0f) sum[part] = add_sums(sum[part], staged[part], padded);
          uint32_t* to = pairs + (g * group_k + at) / 2 * rows + row * split + part;
          if (rows == 1) {
            __builtin_memcpy(to, staged[part], static_cast<size_t>(padded) * 2);
            continue;
          }
          for (int64_t i = 0; i < padded; i += 2, to += rows) __builtin_memcpy(to, staged[part] + i, 4);
        }
      }
      for (int64_t part = 0; part < split; ++part) sums[g * rows + row * split + part] = worth * _mm512_reduce_add_ps(sum[part]);
    }
  }
}

}  // namespace
}  // namespace qcompile
