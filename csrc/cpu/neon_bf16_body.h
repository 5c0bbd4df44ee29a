// Weights of 4 and 8 bits with pairs of bfloat16 on Arm (BFDOT). The scheme is that of bf16_body.h: a nibble ORed into 0x4300 is the number
// 128 + u, the 128 and the zero point leave with one multiple of the sum of x per group, and float16 input is split exactly into two rows of
// bfloat16 whose results are added.
// Instructions: https://developer.arm.com/architectures/instruction-sets/intrinsics (vbfdotq_f32, vqtbl2q_u8).
#pragma once

#include <arm_neon.h>

#include "cpu/vectors.h"

namespace qcompile {
namespace {

// Two numbers that bfloat16 holds exactly, as a pair.
inline Words pair_of(const Floats& even, const Floats& odd) {
  return same_bits<Words>(even) >> 16 | (same_bits<Words>(odd) & 0xffff0000u);
}

inline Floats add_pairs(const Floats& sum, const Words& w, uint32_t x) {
  return same_bits<Floats>(vbfdotq_f32(same_bits<float32x4_t>(sum), same_bits<bfloat16x8_t>(w), same_bits<bfloat16x8_t>(Words{} + x)));
}

// How a word of codes becomes pairs; made once for a panel.
template <int kBits, Values kValues>
struct WordPairs;

template <>
struct WordPairs<4, Values::integers> {
  explicit WordPairs(const PackedWeight&) {}
  Words operator()(const Words& word, int pair) const { return (word >> (4 * pair) & 0x000f000fu) | 0x43004300u; }
};

template <>
struct WordPairs<8, Values::integers> {
  explicit WordPairs(const PackedWeight&) {}
  Words operator()(const Words& word, int pair) const {
    const Ints even = same_bits<Ints>(word << (24 - 16 * pair)) >> 24, odd = same_bits<Ints>(word << (16 - 16 * pair)) >> 24;
    return pair_of(to_floats(even), to_floats(odd));
  }
};

template <>
struct WordPairs<4, Values::book> {
  uint8x16x2_t book;  // as bfloat16

  explicit WordPairs(const PackedWeight& weight) {
    uint16_t halves[kBookEntries];
    for (int64_t i = 0; i < kBookEntries; ++i) std::memcpy(halves + i, weight.book + i * 4 + 2, 2);
    std::memcpy(&book, halves, sizeof halves);
  }

  Words operator()(const Words& word, int pair) const {
    const Words places = (word >> (4 * pair) & 0x000f000fu) * 0x0202u + 0x01000100u;  // of both bytes of both numbers
    return same_bits<Words>(vqtbl2q_u8(book, same_bits<uint8x16_t>(places)));
  }
};

template <Values kValues>
struct WordPairs<8, kValues> {
  explicit WordPairs(const PackedWeight&) {}
  Words operator()(const Words& word, int pair) const {
    const Words even = word >> (16 * pair) & 0xffu, odd = word >> (16 * pair + 8) & 0xffu;
    return kValues == Values::e4m3 ? pair_of(from_e4m3(even), from_e4m3(odd)) : pair_of(from_e5m2(even), from_e5m2(odd));
  }
};

template <int kBits, Values kValues = Values::integers>
struct NeonBf16Body {
  static constexpr int64_t kMostRows = 4;
  static constexpr int64_t kLineK = 32 / kBits;
  static constexpr int kLinePairs = 16 / kBits;

  static int64_t parts(Dtype dtype) { return dtype == Dtype::fp16 ? 2 : 1; }

  // A prepared panel of R rows: [groups][R] where a sum begins, as in bf16_body.h, then [pairs of k][R] pairs.
  static int64_t row_bytes(const PackedShape& shape) { return shape.padded_k() * 2 + shape.groups() * 4; }

  template <int R>
  static void run_panel(const PanelArgs& args) {
    const PackedWeight& weight = *args.weight;
    const int64_t groups = weight.shape.groups(), group_lines = weight.shape.group_lines();
    const float* const sums = reinterpret_cast<const float*>(args.panel);
    const uint32_t* const pairs = reinterpret_cast<const uint32_t*>(args.panel + groups * R * 4);
    const uint8_t* line = weight.codes + args.begin * weight.shape.lines() * kLineBytes;
    const WordPairs<kBits, kValues> pairs_of(weight);
    for (int64_t block = args.begin; block < args.end; ++block) {
      Floats total[R][kParts] = {};
      const uint32_t* x = pairs;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t meta = (block * groups + g) * kBlock;
        Floats sum[R][kParts];
        QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
          // Without zero points the sums were multiplied beforehand.
          const Floats offset =
              weight.zeros == nullptr ? all(1.0f) : load_zeros(weight, meta + part * kWidth, 0) + (kBits == 4 ? 128.0f : 0.0f);
          QCOMPILE_UNROLL for (int r = 0; r < R; ++r) sum[r][part] = offset * sums[g * R + r];
        }
        for (int64_t l = 0; l < group_lines; ++l, line += kLineBytes, x += kLinePairs * R) {
          fetch_ahead<Fetch::once>(line);
          QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
            const Words word = load<Words>(line + part * kWidth * 4);
            QCOMPILE_UNROLL for (int p = 0; p < kLinePairs; ++p) {
              const Words w = pairs_of(word, p);
              QCOMPILE_UNROLL for (int r = 0; r < R; ++r) sum[r][part] = add_pairs(sum[r][part], w, x[p * R + r]);
            }
          }
        }
        QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
          const Floats scale = load_scales(weight, meta + part * kWidth);
          QCOMPILE_UNROLL for (int r = 0; r < R; ++r) total[r][part] += scale * sum[r][part];
        }
      }
      store(args, block, total);
    }
  }

  template <int R>
  static void store(const PanelArgs& args, int64_t block, Floats (&total)[R][kParts]) {
    for (int r = 0; r < R; ++r)
      for (int part = 0; part < kParts; ++part) total[r][part] *= load_outer(*args.weight, block, part);
    if (args.dtype != Dtype::fp16) {
      for (int r = 0; r < R; ++r) store_row(args, r, block * kBlock, total[r]);
      return;
    }
    for (int r = 0; r + 1 < R; r += 2) {
      for (int part = 0; part < kParts; ++part) total[r][part] += total[r + 1][part];
      store_row(args, r / 2, block * kBlock, total[r]);
    }
  }

  // One number of x as one or two parts of bfloat16. The high part is cut, not rounded: the rest then has at most 3 significant bits.
  static void split(Dtype dtype, uint16_t value, uint16_t (&part)[2]) {
    part[0] = value;
    if (dtype != Dtype::fp16) return;
    const float wide = fp16_to_float(value);
    part[0] = static_cast<uint16_t>(float_bits(wide) >> 16);
    part[1] = float_to_bf16(wide - bf16_to_float(part[0]));
  }

  static void prepare_panel(const PackedWeight& weight, const LinearInput& input, uint8_t* out, int64_t first, int64_t count) {
    const PackedShape& shape = weight.shape;
    const int64_t split_in = parts(input.dtype), rows = count * split_in, groups = shape.groups(), group_k = shape.group_k();
    float* const sums = reinterpret_cast<float*>(out);
    uint16_t* const pairs = reinterpret_cast<uint16_t*>(out + groups * rows * 4);
    const float worth = kValues != Values::integers ? 0.0f : weight.zeros != nullptr ? -1.0f : kBits == 4 ? -136.0f : 0.0f;
    for (int64_t row = 0; row < count; ++row) {
      const uint16_t* const x = static_cast<const uint16_t*>(input.x) + (first + row) * input.stride;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t from = g * shape.group, end = smaller(from + shape.group, shape.k);
        float sum[2] = {};
        for (int64_t i = 0; i < group_k; ++i) {
          const int64_t k = from + i;
          uint16_t part[2] = {};
          if (k < end) split(input.dtype, x[input.perm == nullptr ? k : input.perm[k]], part);
          for (int64_t p = 0; p < split_in; ++p) {
            sum[p] += bf16_to_float(part[p]);
            pairs[((g * group_k + i) / 2 * rows + row * split_in + p) * 2 + i % 2] = part[p];
          }
        }
        for (int64_t p = 0; p < split_in; ++p) sums[g * rows + row * split_in + p] = worth == 0.0f ? 0.0f : worth * sum[p];
      }
    }
  }
};

}  // namespace
}  // namespace qcompile
