// Attention of bfloat16 with VDPBF16PS, which adds two products to a float32 lane (Intel SDM volume 2; bfloat16 products are exact
// in float32). Weights of the softmax are rounded to bfloat16 for the second product, as PyTorch's own kernel does.
#define QCOMPILE_WIDTH 16
#include <immintrin.h>

#include "cpu/attention_body.h"

namespace qcompile {
namespace {

constexpr int64_t kPairs = 32;  // values of one register

inline __m512bh as_pairs(__m512i value) { return (__m512bh)value; }

// The first `count` of 32 values.
inline __mmask32 first_columns(int64_t count) { return count >= kPairs ? ~__mmask32{0} : count <= 0 ? 0 : (__mmask32{1} << count) - 1; }

struct PairBody {
  static int64_t padded(const Attention& a) { return rounded_up(a.width, kPairs); }
  static int64_t query_bytes(const Attention& a) { return padded(a) * 2; }
  // One tile of keys turned, and the weights of a block as pairs.
  static int64_t work_bytes(const Attention& a) { return padded(a) / 2 * kTile * 4 + a.rows() * kKeys * 2; }
  static int64_t sum_floats(const Attention& a) { return padded(a); }

  static void prepare(const Attention& a, const uint8_t* from, uint8_t* out) {
    std::memset(out, 0, static_cast<size_t>(query_bytes(a)));
    std::memcpy(out, from, static_cast<size_t>(a.width) * 2);
  }

  static void score(const Attention& a, const uint8_t* keys, int64_t stride, int64_t count, const uint8_t* queries, int64_t rows,
                    float* scores, uint8_t* work) {
    const uint16_t* const from = reinterpret_cast<const uint16_t*>(keys);
    float* const turned = reinterpret_cast<float*>(work);
    const int64_t width = padded(a);
    for (int64_t d = 0; d < width; d += kPairs) {
      const __mmask32 columns = first_columns(a.width - d);
      Floats square[kWidth];
      QCOMPILE_UNROLL
      for (int i = 0; i < kWidth; ++i)
        square[i] = i < count ? same_bits<Floats>(_mm512_maskz_loadu_epi16(columns, from + i * stride + d)) : Floats{};
      transpose(square);
      QCOMPILE_UNROLL
      for (int i = 0; i < kWidth; ++i) store(turned + (d / 2 + i) * kTile, square[i]);
    }
    int64_t row = 0;
    for (; row + 8 <= rows; row += 8) products<8>(turned, queries + row * width * 2, width, scores + row * kKeys);
    for (; row + 4 <= rows; row += 4) products<4>(turned, queries + row * width * 2, width, scores + row * kKeys);
    for (; row < rows; ++row) products<1>(turned, queries + row * width * 2, width, scores + row * kKeys);
  }

  // Two sums for each row, so that few rows do not wait for the multiplier.
  template <int Rows>
  static void products(const float* turned, const uint8_t* queries, int64_t width, float* scores) {
    const int32_t* const q = reinterpret_cast<const int32_t*>(queries);
    __m512 even[Rows], odd[Rows];
    QCOMPILE_UNROLL
    for (int row = 0; row < Rows; ++row) even[row] = odd[row] = _mm512_setzero_ps();
    const int64_t pairs = width / 2;
    for (int64_t d = 0; d < pairs; d += 2) {
      const __m512bh first = as_pairs(_mm512_load_si512(turned + d * kTile));
      const __m512bh second = as_pairs(_mm512_load_si512(turned + (d + 1) * kTile));
      QCOMPILE_UNROLL
      for (int row = 0; row < Rows; ++row) {
        even[row] = _mm512_dpbf16_ps(even[row], first, as_pairs(_mm512_set1_epi32(q[row * pairs + d])));
        odd[row] = _mm512_dpbf16_ps(odd[row], second, as_pairs(_mm512_set1_epi32(q[row * pairs + d + 1])));
      }
    }
    QCOMPILE_UNROLL
    for (int row = 0; row < Rows; ++row) _mm512_storeu_ps(scores + row * kKeys, _mm512_add_ps(even[row], odd[row]));
  }

  static void add(const Attention& a, const uint8_t* values, int64_t stride, int64_t count, const float* weights, int64_t rows,
                  float* sums, uint8_t* work) {
    const int64_t width = padded(a);
    int32_t* const packed = reinterpret_cast<int32_t*>(work + width / 2 * kTile * 4);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < rounded_up(count, kTile); i += kTile) {
        const __m256i half = (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(weights + row * kKeys + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed + (row * kKeys + i) / 2), half);
      }
    const Block block = {reinterpret_cast<const uint16_t*>(values), stride, count, packed, sums, width, a.width};
    int64_t row = 0;
    for (; row + 8 <= rows; row += 8) add_rows<1, 8>(block, row);
    for (; row + 4 <= rows; row += 4) add_rows<2, 4>(block, row);
    for (; row < rows; ++row) add_rows<2, 1>(block, row);
  }

  struct Block {
    const uint16_t* values;
    int64_t stride, count;
    const int32_t* weights;
    float* sums;
    int64_t width, columns;  // of the sums, of the values
  };

  template <int Registers, int Rows>
  static void add_rows(const Block& block, int64_t row) {
    for (int64_t d = 0; d < block.width; d += Registers * kPairs) add_columns<Registers, Rows>(block, row, d);
  }

  // Sums stand in the order in which unpacking two rows of values puts them: see `order`.
  template <int Registers, int Rows>
  static void add_columns(const Block& block, int64_t row, int64_t d) {
    const int64_t width = block.width, stride = block.stride;
    float* const sums = block.sums + row * width + d;
    const int32_t* const weights = block.weights + row * kKeys / 2;
    const uint16_t* from = block.values + d;
    // The last register of an odd number of them has no columns and no sums.
    const bool half = Registers == 2 && d + kPairs >= width;
    __mmask32 columns[Registers];
    QCOMPILE_UNROLL
    for (int i = 0; i < Registers; ++i) columns[i] = first_columns(block.columns - d - i * kPairs);
    __m512 sum[Rows][2 * Registers];
    QCOMPILE_UNROLL
    for (int r = 0; r < Rows; ++r)
      QCOMPILE_UNROLL
      for (int i = 0; i < 2 * Registers; ++i)
        sum[r][i] = i >= 2 && half ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * width + i * 16);
    const int64_t pairs = (block.count + 1) / 2;
    for (int64_t pair = 0; pair < pairs; ++pair, from += 2 * stride) {
      const bool present = 2 * pair + 1 < block.count;
      const uint16_t* const second = present ? from + stride : from;
      const __mmask32 both = present ? ~__mmask32{0} : 0;
      __m512bh value[2 * Registers];
      QCOMPILE_UNROLL
      for (int i = 0; i < Registers; ++i) {
        const __m512i low = _mm512_maskz_loadu_epi16(columns[i], from + i * kPairs);
        const __m512i high = _mm512_maskz_loadu_epi16(columns[i] & both, second + i * kPairs);
        value[2 * i] = as_pairs(_mm512_unpacklo_epi16(low, high));
        value[2 * i + 1] = as_pairs(_mm512_unpackhi_epi16(low, high));
      }
      QCOMPILE_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const __m512bh weight = as_pairs(_mm512_set1_epi32(weights[r * kKeys / 2 + pair]));
        QCOMPILE_UNROLL
        for (int i = 0; i < 2 * Registers; ++i) sum[r][i] = _mm512_dpbf16_ps(sum[r][i], weight, value[i]);
      }
    }
    QCOMPILE_UNROLL
    for (int r = 0; r < Rows; ++r)
      QCOMPILE_UNROLL
      for (int i = 0; i < 2 * Registers; ++i)
        if (i < 2 || !half) _mm512_store_ps(sums + r * width + i * 16, sum[r][i]);
  }

  // Of 32 values, lane l of the first register is value l + 4 * (l / 4) and of the second four more (VPUNPCK works by 128 bits).
  static void order(const Attention& a, const float* sums, float* out) {
    for (int64_t d = 0; d < a.width; ++d) {
      const int64_t at = d % kPairs, quarter = at / 8, inside = at % 8;
      out[d] = sums[d - at + (inside / 4) * 16 + quarter * 4 + inside % 4];
    }
  }
};

}  // namespace

extern const AttentionKernel kAttentionAvx512Bf16;
const AttentionKernel kAttentionAvx512Bf16 = {"avx512_bf16", AttentionRun<PairBody>::scratch_bytes, AttentionRun<PairBody>::run};

}  // namespace qcompile
