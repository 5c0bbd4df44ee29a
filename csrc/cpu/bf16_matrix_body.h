// 4-bit and 8-bit weights, and 4-bit codes of a code book of bfloat16, with BFMMLA: rows of x two by two, with the outputs of a part
// two by two, over four values of k.
//
// 4 bit: the entry of a code (u - 8 without a book, exact as bfloat16) is looked up byte by byte with TBL, and the bytes are put
// together by ZIP in such a way that the four values of an output stand side by side. 8 bit: a byte is a float32 exactly in the upper
// half, which is the bfloat16.
// float16 input is split exactly into two bfloat16 rows, a pair, whose results are added.
// BFMMLA rounds each sum to odd, which costs up to a unit of the last place of float32 where rounding to nearest costs half of one,
// and takes subnormal numbers for zero, as VDPBF16PS does; products of bfloat16 are exact in float32. Arm Architecture Reference
// Manual, FPDotAdd and BFDotAdd. BFMLALB and BFMLALT would round to nearest, but do not do more at a time than products of float32.
#pragma once

#include "cpu/quantize.h"
#include "cpu/rows_by_two.h"

namespace qcompile {
namespace {

// The two bytes of the 16 numbers that codes stand for.
struct BookBytes {
  uint8x16_t low, high;

  explicit BookBytes(const uint8_t* book) {
    uint8_t lows[16], highs[16];
    for (int i = 0; i < 16; ++i) {
      const float entry = book == nullptr ? static_cast<float>(i - 8) : load<float>(book + i * 4);
      const uint32_t bits = float_bits(entry);
      lows[i] = static_cast<uint8_t>(bits >> 16);
      highs[i] = static_cast<uint8_t>(bits >> 24);
    }
    low = load<uint8x16_t>(lows);
    high = load<uint8x16_t>(highs);
  }
};

// Four values of k of outputs 0, 1 and of 2, 3 of a part.
struct TwoByFour {
  bfloat16x8_t left, right;
};

inline TwoByFour look_up(const uint8x16_t& codes, const BookBytes& book) {
  const uint8x16_t low = vqtbl1q_u8(book.low, codes), high = vqtbl1q_u8(book.high, codes);
  return {vreinterpretq_bf16_u8(vzip1q_u8(low, high)), vreinterpretq_bf16_u8(vzip2q_u8(low, high))};
}

inline bfloat16x8_t as_bf16(const int16x8_t& values) {
  const float32x4_t first = vcvtq_f32_s32(vmovl_s16(vget_low_s16(values))), last = vcvtq_f32_s32(vmovl_high_s16(values));
  return vreinterpretq_bf16_u16(vuzp2q_u16(vreinterpretq_u16_f32(first), vreinterpretq_u16_f32(last)));
}

// Of numbers of 8 bits, which bfloat16 holds.
template <Values kValues>
inline bfloat16x8_t numbers_as_bf16(const uint16x8_t& bytes) {
  const Words first = same_bits<Words>(vmovl_u16(vget_low_u16(bytes))), last = same_bits<Words>(vmovl_high_u16(bytes));
  const Floats low = kValues == Values::e4m3 ? from_e4m3(first) : from_e5m2(first);
  const Floats high = kValues == Values::e4m3 ? from_e4m3(last) : from_e5m2(last);
  return vreinterpretq_bf16_u16(vuzp2q_u16(same_bits<uint16x8_t>(low), same_bits<uint16x8_t>(high)));
}

template <int kBits, int64_t kRows, Values kValues = Values::integers>
struct Bf16MatrixBody {
  static constexpr int64_t kMostRows = kRows;
  static constexpr int64_t kLineK = 32 / kBits;
  static constexpr int kQuads = 8 / kBits;  // of k of a line

  static int64_t parts(Dtype dtype) { return dtype == Dtype::fp16 ? 2 : 1; }

  // A prepared panel of R rows: [groups][R] sums of x, then [lines][quads][R] four values, as bfloat16; of 4 bit k = (0 4 1 5), then
  // (2 6 3 7). What float16 is split into adds up in the first of the two sums.
  static int64_t row_bytes(const PackedShape& shape) { return shape.padded_k() * 2 + shape.groups() * 4; }

  static inline TwoByFour decode(const uint8x16_t& bytes, [[maybe_unused]] int quad, [[maybe_unused]] const BookBytes& book) {
    if constexpr (kBits == 4) return look_up(quad == 0 ? vandq_u8(bytes, vdupq_n_u8(15)) : vshrq_n_u8(bytes, 4), book);
    if constexpr (kValues != Values::integers)
      return {numbers_as_bf16<kValues>(vmovl_u8(vget_low_u8(bytes))), numbers_as_bf16<kValues>(vmovl_high_u8(bytes))};
    const int8x16_t codes = vreinterpretq_s8_u8(bytes);
    return {as_bf16(vmovl_s8(vget_low_s8(codes))), as_bf16(vmovl_high_s8(codes))};
  }

  // Row 2p and the one after it, or twice an odd last row.
  template <int R>
  static inline bfloat16x8_t two_rows(int p, const uint8_t* x) {
    if (2 * p + 1 == R) return vreinterpretq_bf16_u64(vdupq_n_u64(load<uint64_t>(x + 16 * p)));
    return vreinterpretq_bf16_u8(load<uint8x16_t>(x + 16 * p));
  }

  template <int R>
  static void run_panel(const PanelArgs& args) {
    constexpr int kPairs = (R + 1) / 2;
    const PackedWeight& weight = *args.weight;
    const int64_t groups = weight.shape.groups(), group_lines = weight.shape.group_lines();
    const float* const sums = reinterpret_cast<const float*>(args.panel);
    const uint8_t* line = weight.codes + args.begin * weight.shape.lines() * kLineBytes;
    const BookBytes book(kValues == Values::book ? weight.book : nullptr);
    for (int64_t block = args.begin; block < args.end; ++block) {
      Floats total[R][kParts] = {};
      const uint8_t* x = args.panel + groups * R * 4;
      for (int64_t g = 0; g < groups; ++g) {
        RowsByTwo<R, float32x4_t> sum;
        for (int64_t l = 0; l < group_lines; ++l, line += kLineBytes) {
          fetch_ahead<Fetch::once>(line);
          QCOMPILE_UNROLL for (int quad = 0; quad < kQuads; ++quad, x += R * 8) {
            bfloat16x8_t rows[kPairs];
            QCOMPILE_UNROLL for (int p = 0; p < kPairs; ++p) rows[p] = two_rows<R>(p, x);
            QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
              const TwoByFour w = decode(load<uint8x16_t>(line + part * 16), quad, book);
              QCOMPILE_UNROLL for (int p = 0; p < kPairs; ++p) {
                sum.left[p][part] = vbfmmlaq_f32(sum.left[p][part], rows[p], w.left);
                sum.right[p][part] = vbfmmlaq_f32(sum.right[p][part], rows[p], w.right);
              }
            }
          }
        }
        Floats products[R][kParts];
        sum.rows(products);
        QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
          const int64_t meta = (block * groups + g) * kBlock + part * kWidth;
          const Floats scale = load_scales(weight, meta);
          if (kValues == Values::integers && weight.zeros != nullptr) {
            const Floats zero = load_zeros(weight, meta, 0) - (kBits == 4 ? 8.0f : 0.0f);
            QCOMPILE_UNROLL for (int r = 0; r < R; ++r) products[r][part] -= zero * all(sums[g * R + r]);
          }
          QCOMPILE_UNROLL for (int r = 0; r < R; ++r) total[r][part] += scale * products[r][part];
        }
      }
      store<R>(args, block, total);
    }
  }

  template <int R>
  static void store(const PanelArgs& args, int64_t block, Floats (&total)[R][kParts]) {
    if (args.weight->outer != nullptr)
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

  // One value as it is, or what is left of a float16 after cutting it to bfloat16: at most 3 significant bits, with its sign.
  static inline uint16_t cut(float value, int64_t part) {
    const uint32_t bits = float_bits(value);
    if (part == 0) return static_cast<uint16_t>(bits >> 16);
    return float_to_bf16(value - bits_float(bits & 0xffff0000u));
  }

  static void prepare_panel(const PackedWeight& weight, const LinearInput& input, uint8_t* out, int64_t first, int64_t count) {
    constexpr int kOrder[8] = {0, kBits == 4 ? 4 : 1, kBits == 4 ? 1 : 2, kBits == 4 ? 5 : 3, 2, 6, 3, 7};
    const PackedShape& shape = weight.shape;
    const int64_t split = parts(input.dtype), rows = count * split, groups = shape.groups(), group_k = shape.group_k();
    float* const sums = reinterpret_cast<float*>(out);
    uint8_t* const data = out + groups * rows * 4;
    float values[kPiece];
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        Floats sum = {};
        for (int64_t at = 0; at < group_k; at += kPiece) {
          const int64_t padded = smaller(kPiece, group_k - at);
          read_group(shape, input, first + row, g, at, padded, values);
          for (int64_t i = 0; i < padded; i += kWidth) sum += load<Floats>(values + i);
          for (int64_t part = 0; part < split; ++part) {
            uint8_t* to = data + ((g * group_k + at) * rows + (row * split + part) * 4) * 2;
            for (int64_t i = 0; i < padded; i += kLineK) {
              for (int quad = 0; quad < kQuads; ++quad, to += rows * 8) {
                uint16_t four[4];
                for (int j = 0; j < 4; ++j) four[j] = cut(values[i + kOrder[quad * 4 + j]], part);
                std::memcpy(to, four, sizeof four);
              }
            }
          }
        }
        for (int64_t part = 0; part < split; ++part)
          sums[g * rows + row * split + part] = part == 0 ? (sum[0] + sum[1]) + (sum[2] + sum[3]) : 0.0f;
      }
    }
  }
};

}  // namespace
}  // namespace qcompile
