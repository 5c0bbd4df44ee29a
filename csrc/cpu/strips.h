// Products of many rows: strips of a weight are unpacked once into the second cache, as float32 numbers, and multiplied with all rows
// by one loop that is the same for every stored kind. A panel of few rows instead decodes codes again (float_body.h, planes_body.h).
//
// An Unpacker is made by each thread and has
//   Weight                             what it reads
//   unpack(block, from, count, to)     positions [from, from + count) of a block of outputs, scaled, kVectors vectors apart; from is
//                                      a multiple of kStripK, and count too, or it ends at the last position
//   finished(sum, block, part)         the result that a sum over all positions stands for, without the bias
// Positions are those of the packed weight: each group ends with padding, whose weights are 0.
#pragma once

#include "cpu/vectors.h"

namespace qcompile {
namespace {

constexpr int64_t kStripK = 256;               // positions of a strip
constexpr int64_t kSumK = 128;                 // that are summed before they are added to the total, which bounds the rounding error
constexpr int kSide = kWidth == 16 ? 2 : 1;    // blocks that the loop multiplies together
constexpr int kVectors = kSide * kParts;
constexpr int64_t kStrips = 4 / kSide;         // that are unpacked before all rows are read
constexpr int64_t kMostStripRows = 384;        // totals of these lie on the stack

// The real positions of a group; the others up to shape.group_k() are padding.
template <class Shape>
inline int64_t real_k(const Shape& shape, int64_t group) {
  return smaller(shape.group, shape.k - group * shape.group);
}

template <class Unpacker, int64_t kRows>
struct Strips {
  using Weight = typename Unpacker::Weight;
  using Shape = decltype(Weight::shape);
  using Args = PanelArgsOf<Weight>;

  static int64_t count(Dtype, int64_t m) { return (m + kRows - 1) / kRows; }
  static int64_t start(int64_t m, int64_t panel) { return m * panel / count(Dtype::f32, m); }

  static int64_t max_rows(const Shape& shape) { return smaller(kMostStripRows, larger(96, (12 << 20) / (shape.padded_k() * 4 + 1))); }

  static int64_t prepared_bytes(const Shape& shape, Dtype, int64_t m) { return shape.padded_k() * 4 * m; }

  // Panels of x as float32: [padded k][rows].
  static void prepare(const Weight& weight, const LinearInput& input, void* prepared, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = start(input.m, panel), rows = start(input.m, panel + 1) - first;
      float* const out = static_cast<float*>(prepared) + first * weight.shape.padded_k();
      for (int64_t row = 0; row < rows; ++row) prepare_row(weight.shape, input, first + row, rows, out + row);
    }
  }

  static void prepare_row(const Shape& shape, const LinearInput& input, int64_t row, int64_t step, float* to) {
    for (int64_t g = 0; g < shape.groups(); ++g) {
      for (int64_t from = 0; from < shape.group_k(); from += kSumK) {
        const int64_t padded = smaller(kSumK, shape.group_k() - from);
        float values[kSumK];
        read_row(input, row, g * shape.group + from, larger(0, smaller(padded, real_k(shape, g) - from)), padded, values);
        for (int64_t i = 0; i < padded; ++i, to += step) *to = values[i];
      }
    }
  }

  template <int R>
  static void add_panel(const Floats* weights, const float* x, int64_t count, Floats* total) {
    for (int64_t from = 0; from < count; from += kSumK) {
      Floats sum[R][kVectors] = {};
      const int64_t end = smaller(from + kSumK, count);
      for (int64_t k = from; k < end; ++k, weights += kVectors, x += R) {
        QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
          const Floats value = all(x[r]);
          QCOMPILE_UNROLL for (int i = 0; i < kVectors; ++i) sum[r][i] += weights[i] * value;
        }
      }
      QCOMPILE_UNROLL for (int r = 0; r < R; ++r)
        QCOMPILE_UNROLL for (int i = 0; i < kVectors; ++i) total[r * kVectors + i] += sum[r][i];
    }
  }

  template <int... R>
  static void add_rows(int64_t rows, const Floats* weights, const float* x, int64_t count, Floats* total, std::integer_sequence<int, R...>) {
    constexpr void (*kAdd[])(const Floats*, const float*, int64_t, Floats*) = {add_panel<R + 1>...};
    kAdd[rows - 1](weights, x, count, total);
  }

  // Strips [0, strips) of blocks from `block` on, not beyond `end`.
  static void run_strips(Unpacker& unpacker, const Args& args, const float* prepared, int64_t m, int64_t block, int64_t strips) {
    const int64_t padded = args.weight->shape.padded_k(), panels = count(args.dtype, m);
    Floats weights[kStrips][kStripK * kVectors], total[kStrips][kMostStripRows * kVectors];
    for (int64_t i = 0; i < strips; ++i)
      for (int64_t j = 0; j < m * kVectors; ++j) total[i][j] = Floats{};
    for (int64_t from = 0; from < padded; from += kStripK) {
      const int64_t positions = smaller(kStripK, padded - from);
      for (int64_t i = 0; i < strips; ++i) unpack_side(unpacker, args.end, block + i * kSide, from, positions, weights[i]);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t row = start(m, panel), rows = start(m, panel + 1) - row;
        const float* const x = prepared + row * padded + from * rows;
        for (int64_t i = 0; i < strips; ++i)
          add_rows(rows, weights[i], x, positions, total[i] + row * kVectors, std::make_integer_sequence<int, static_cast<int>(kRows)>());
      }
    }
    for (int64_t i = 0; i < strips; ++i)
      for (int side = 0; side < kSide && block + i * kSide + side < args.end; ++side)
        for (int64_t row = 0; row < m; ++row) store(unpacker, args, row, block + i * kSide + side, total[i] + row * kVectors + side * kParts);
  }

  static void unpack_side(Unpacker& unpacker, int64_t end, int64_t block, int64_t from, int64_t count, Floats* to) {
    for (int side = 0; side < kSide; ++side) {
      if (block + side < end)
        unpacker.unpack(block + side, from, count, to + side * kParts);
      else
        for (int64_t k = 0; k < count; ++k)
          for (int part = 0; part < kParts; ++part) to[k * kVectors + side * kParts + part] = Floats{};
    }
  }

  static void store(const Unpacker& unpacker, const Args& args, int64_t row, int64_t block, const Floats* from) {
    Floats finished[kParts];
    for (int part = 0; part < kParts; ++part) finished[part] = unpacker.finished(from[part], block, part);
    store_row(args, row, block * kBlock, finished);
  }

  static void run(const Weight& weight, const LinearInput& input, const void* prepared, const LinearOutput& output, int64_t begin,
                  int64_t end) {
    Unpacker unpacker(weight);
    const Args args = {&weight, nullptr, output, input.dtype, begin, end};
    for (int64_t block = begin; block < end; block += kStrips * kSide)
      run_strips(unpacker, args, static_cast<const float*>(prepared), input.m, block, smaller(kStrips, (end - block + kSide - 1) / kSide));
  }

  static constexpr LinearKernelOf<Weight> kernel(const char* name) { return {name, max_rows, prepared_bytes, count, prepare, run}; }
};

}  // namespace
}  // namespace qcompile
