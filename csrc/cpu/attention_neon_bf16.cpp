// Attention of bfloat16 with BFMMLA, which multiplies two rows with two others over four values and adds to four float32 sums, rounded
// to odd (see bf16_matrix_body.h). Weights of the softmax are rounded to bfloat16 for the second product, as PyTorch's own kernel does.
#define QCOMPILE_WIDTH 4
#include <arm_neon.h>

#include "cpu/attention_body.h"

namespace qcompile {
namespace {

constexpr int64_t kEight = 8;  // values of one register
constexpr int kKeyPairs = static_cast<int>(kTile / 2);

// Two rows side by side: values 0..3 of both, then 4..7 of both.
struct Sides {
  uint64x2_t first, last;
};
inline Sides side_by_side(const uint16x8_t& a, const uint16x8_t& b) {
  const uint64x2_t x = vreinterpretq_u64_u16(a), y = vreinterpretq_u64_u16(b);
  return {vzip1q_u64(x, y), vzip2q_u64(x, y)};
}

inline uint16x8_t load_some(const uint16_t* from, int64_t count) {
  if (count >= kEight) return vld1q_u16(from);
  uint16_t some[kEight] = {};
  std::memcpy(some, from, static_cast<size_t>(count) * 2);
  return vld1q_u16(some);
}

inline float32x4_t multiply_add(const float32x4_t& sum, const uint64x2_t& a, const uint64x2_t& b) {
  return vbfmmlaq_f32(sum, vreinterpretq_bf16_u64(a), vreinterpretq_bf16_u64(b));
}

// Four values of one row and of the one `bytes` after it.
inline uint64x2_t two_rows(const uint8_t* from, int64_t bytes) {
  return vcombine_u64(vdup_n_u64(load<uint64_t>(from)), vdup_n_u64(load<uint64_t>(from + bytes)));
}

struct MatrixBody {
  static int64_t padded(const Attention& a) { return rounded_up(a.width, kEight); }
  static int64_t query_bytes(const Attention& a) { return padded(a) * 2; }
  // The values of a block in fours of keys (or a tile of keys in pairs), and the weights of a block.
  static int64_t work_bytes(const Attention& a) { return (padded(a) + a.rows()) * kKeys * 2; }
  static int64_t sum_floats(const Attention& a) { return padded(a); }

  static void prepare(const Attention& a, const uint8_t* from, uint8_t* out) {
    std::memset(out, 0, static_cast<size_t>(query_bytes(a)));
    std::memcpy(out, from, static_cast<size_t>(a.width) * 2);
  }

  static void order(const Attention& a, const float* sums, float* out) { std::memcpy(out, sums, static_cast<size_t>(a.width) * 4); }

  static void score(const Attention& a, const uint8_t* keys, int64_t stride, int64_t count, const uint8_t* queries, int64_t rows,
                    float* scores, uint8_t* work) {
    const uint16_t* const from = reinterpret_cast<const uint16_t*>(keys);
    uint64_t* const turned = reinterpret_cast<uint64_t*>(work);  // [width / 4][pairs of keys][2]
    for (int64_t d = 0; d < a.width; d += kEight)
      for (int64_t pair = 0; pair < kKeyPairs; ++pair) {
        const uint16_t* const key = from + 2 * pair * stride + d;
        const uint16x8_t none = vdupq_n_u16(0);
        const Sides sides = side_by_side(2 * pair < count ? load_some(key, a.width - d) : none,
                                         2 * pair + 1 < count ? load_some(key + stride, a.width - d) : none);
        vst1q_u64(turned + (d / 4 * kKeyPairs + pair) * 2, sides.first);
        vst1q_u64(turned + ((d / 4 + 1) * kKeyPairs + pair) * 2, sides.last);
      }
    const int64_t bytes = query_bytes(a);
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) products<2>(turned, queries + row * bytes, bytes, 4, scores + row * kKeys);
    for (; row < rows; row += 2) products<1>(turned, queries + row * bytes, bytes, smaller(2, rows - row), scores + row * kKeys);
  }

  // Pairs of rows, of which the last one may be a single row.
  template <int Pairs>
  static void products(const uint64_t* turned, const uint8_t* queries, int64_t bytes, int64_t rows, float* scores) {
    float32x4_t sum[Pairs][kKeyPairs];
    QCOMPILE_UNROLL
    for (int p = 0; p < Pairs; ++p)
      QCOMPILE_UNROLL
      for (int i = 0; i < kKeyPairs; ++i) sum[p][i] = vdupq_n_f32(0.0f);
    const int64_t next = rows == 1 ? 0 : bytes;
    for (int64_t d = 0; d < bytes; d += 8, turned += 2 * kKeyPairs) {
      uint64x2_t q[Pairs];
      QCOMPILE_UNROLL
      for (int p = 0; p < Pairs; ++p) q[p] = two_rows(queries + 2 * p * bytes + d, next);
      QCOMPILE_UNROLL
      for (int i = 0; i < kKeyPairs; ++i) {
        const uint64x2_t keys = vld1q_u64(turned + 2 * i);
        QCOMPILE_UNROLL
        for (int p = 0; p < Pairs; ++p) sum[p][i] = multiply_add(sum[p][i], q[p], keys);
      }
    }
    QCOMPILE_UNROLL
    for (int p = 0; p < Pairs; ++p)
      QCOMPILE_UNROLL
      for (int i = 0; i < kKeyPairs; ++i) {
        vst1_f32(scores + 2 * p * kKeys + 2 * i, vget_low_f32(sum[p][i]));
        if (2 * p + 1 < rows) vst1_f32(scores + (2 * p + 1) * kKeys + 2 * i, vget_high_f32(sum[p][i]));
      }
  }

  static void add(const Attention& a, const uint8_t* values, int64_t stride, int64_t count, const float* weights, int64_t rows,
                  float* sums, uint8_t* work) {
    const int64_t width = padded(a), fours = (count + 3) / 4;
    uint64_t* const turned = reinterpret_cast<uint64_t*>(work);  // [width / 8][fours of keys][8]
    uint8_t* const packed = work + width * kKeys * 2;
    for (int64_t d = 0; d < width; d += kEight)
      for (int64_t four = 0; four < fours; ++four)
        turn(reinterpret_cast<const uint16_t*>(values) + four * 4 * stride + d, stride, smaller(4, count - four * 4), a.width - d,
             turned + (d / kEight * fours + four) * 8);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < fours * 4; i += 4)
        vst1_bf16(reinterpret_cast<bfloat16_t*>(packed) + row * kKeys + i, vcvt_bf16_f32(vld1q_f32(weights + row * kKeys + i)));
    for (int64_t row = 0; row < rows; row += 2)
      for (int64_t d = 0; d < width; d += kEight)
        add_columns(turned + d * fours, fours, packed + row * kKeys * 2, row + 1 < rows, sums + row * width + d, width);
  }

  // Up to four rows of eight values; four values of one column side by side.
  static void turn(const uint16_t* from, int64_t stride, int64_t keys, int64_t columns, uint64_t* out) {
    uint16x8_t row[4];
    QCOMPILE_UNROLL
    for (int i = 0; i < 4; ++i) row[i] = i < keys ? load_some(from + i * stride, columns) : vdupq_n_u16(0);
    const uint32x4_t low[2] = {vreinterpretq_u32_u16(vzip1q_u16(row[0], row[1])), vreinterpretq_u32_u16(vzip2q_u16(row[0], row[1]))};
    const uint32x4_t high[2] = {vreinterpretq_u32_u16(vzip1q_u16(row[2], row[3])), vreinterpretq_u32_u16(vzip2q_u16(row[2], row[3]))};
    QCOMPILE_UNROLL
    for (int i = 0; i < 2; ++i) {
      vst1q_u64(out + 4 * i, vreinterpretq_u64_u32(vzip1q_u32(low[i], high[i])));
      vst1q_u64(out + 4 * i + 2, vreinterpretq_u64_u32(vzip2q_u32(low[i], high[i])));
    }
  }

  // Eight columns of the sums of two rows, or of one that stands for both.
  static void add_columns(const uint64_t* turned, int64_t fours, const uint8_t* weights, bool two, float* sums, int64_t width) {
    const int64_t next = two ? kKeys * 2 : 0;
    float* const second = two ? sums + width : sums;
    float32x4_t sum[4];
    QCOMPILE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float64x2_t a = vreinterpretq_f64_f32(vld1q_f32(sums + 4 * i)), b = vreinterpretq_f64_f32(vld1q_f32(second + 4 * i));
      sum[2 * i] = vreinterpretq_f32_f64(vzip1q_f64(a, b));
      sum[2 * i + 1] = vreinterpretq_f32_f64(vzip2q_f64(a, b));
    }
    for (int64_t four = 0; four < fours; ++four) {
      const uint64x2_t weight = two_rows(weights + four * 8, next);
      QCOMPILE_UNROLL
      for (int i = 0; i < 4; ++i) sum[i] = multiply_add(sum[i], weight, vld1q_u64(turned + four * 8 + 2 * i));
    }
    QCOMPILE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float64x2_t a = vreinterpretq_f64_f32(sum[2 * i]), b = vreinterpretq_f64_f32(sum[2 * i + 1]);
      vst1q_f32(sums + 4 * i, vreinterpretq_f32_f64(vzip1q_f64(a, b)));
      if (two) vst1q_f32(second + 4 * i, vreinterpretq_f32_f64(vzip2q_f64(a, b)));
    }
  }
};

}  // namespace

extern const AttentionKernel kAttentionNeonBf16;
const AttentionKernel kAttentionNeonBf16 = {"neon_bf16", AttentionRun<MatrixBody>::scratch_bytes, AttentionRun<MatrixBody>::run};

}  // namespace qcompile
