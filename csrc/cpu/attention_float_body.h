// Attention in float32 products, for every element type and every ISA.
#pragma once

#include "cpu/attention_body.h"

namespace qcompile {
namespace {

// Up to so many query rows a product is summed along a key; from there on it pays to turn keys so that lanes are keys.
constexpr int64_t kFewRows = 3;

struct FloatBody {
  static int64_t padded(const Attention& a) { return rounded_up(a.width, kWidth); }
  static int64_t query_bytes(const Attention& a) { return padded(a) * 4; }
  // Rows as floats (a tile of keys, or a block of values) and one tile turned.
  static int64_t work_bytes(const Attention& a) { return (kKeys + kTile) * padded(a) * 4; }
  static int64_t sum_floats(const Attention& a) { return padded(a); }

  static void prepare(const Attention& a, const uint8_t* from, uint8_t* out) {
    widen(a.element, from, a.width, padded(a), reinterpret_cast<float*>(out));
  }

  static void order(const Attention& a, const float* sums, float* out) {
    std::memcpy(out, sums, static_cast<size_t>(a.width) * 4);
  }

  static void read_rows(const Attention& a, const uint8_t* from, int64_t stride, int64_t count, float* out) {
    const int64_t bytes = stride * element_bytes(a.element);
    for (int64_t i = 0; i < count; ++i) widen(a.element, from + i * bytes, a.width, padded(a), out + i * padded(a));
  }

  static void score(const Attention& a, const uint8_t* keys, int64_t stride, int64_t count, const uint8_t* queries, int64_t rows,
                    float* scores, uint8_t* work) {
    const int64_t width = padded(a);
    float* const wide = reinterpret_cast<float*>(work);
    float* const turned = wide + kKeys * width;
    const float* const q = reinterpret_cast<const float*>(queries);
    read_rows(a, keys, stride, count, wide);
    std::memset(wide + count * width, 0, static_cast<size_t>((kTile - count) * width) * 4);
    if (rows <= kFewRows) {
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t key = 0; key < kTile; key += kWidth) store(scores + row * kKeys + key, dots(wide + key * width, width, q + row * width));
      return;
    }
    for (int64_t key = 0; key < kTile; key += kWidth)
      for (int64_t d = 0; d < width; d += kWidth) {
        Floats square[kWidth];
        QCOMPILE_UNROLL
        for (int i = 0; i < kWidth; ++i) square[i] = load<Floats>(wide + (key + i) * width + d);
        transpose(square);
        QCOMPILE_UNROLL
        for (int i = 0; i < kWidth; ++i) store(turned + (d + i) * kTile + key, square[i]);
      }
    constexpr int kMost = kWidth == 4 && kRegisters == 32 ? 4 : kWidth / 2;
    int64_t row = 0;
    for (; row + kMost <= rows; row += kMost) products<kMost>(turned, q + row * width, width, scores + row * kKeys);
    for (; row < rows; ++row) products<1>(turned, q + row * width, width, scores + row * kKeys);
  }

  static Floats dots(const float* keys, int64_t width, const float* query) {
    Floats sum[kWidth] = {};
    for (int64_t d = 0; d < width; d += kWidth) {
      const Floats q = load<Floats>(query + d);
      QCOMPILE_UNROLL
      for (int i = 0; i < kWidth; ++i) sum[i] += load<Floats>(keys + i * width + d) * q;
    }
    return sums_of(sum);
  }

  template <int Rows>
  static void products(const float* turned, const float* queries, int64_t width, float* scores) {
    constexpr int kVectors = static_cast<int>(kTile) / kWidth;
    Floats sum[Rows][kVectors] = {};
    for (int64_t d = 0; d < width; ++d)
      QCOMPILE_UNROLL
      for (int part = 0; part < kVectors; ++part) {
        const Floats keys = load<Floats>(turned + d * kTile + part * kWidth);
        QCOMPILE_UNROLL
        for (int row = 0; row < Rows; ++row) sum[row][part] += keys * queries[row * width + d];
      }
    QCOMPILE_UNROLL
    for (int row = 0; row < Rows; ++row)
      QCOMPILE_UNROLL
      for (int part = 0; part < kVectors; ++part) store(scores + row * kKeys + part * kWidth, sum[row][part]);
  }

  static void add(const Attention& a, const uint8_t* values, int64_t stride, int64_t count, const float* weights, int64_t rows,
                  float* sums, uint8_t* work) {
    const int64_t width = padded(a);
    float* const wide = reinterpret_cast<float*>(work);
    read_rows(a, values, stride, count, wide);
    constexpr int kMost = kWidth == 16 || (kWidth == 4 && kRegisters == 32) ? 4 : 2;
    int64_t row = 0;
    for (; row + kMost <= rows; row += kMost) add_rows<kMost>(wide, count, weights + row * kKeys, sums + row * width, width);
    for (; row < rows; ++row) add_rows<1>(wide, count, weights + row * kKeys, sums + row * width, width);
  }

  template <int Rows>
  static void add_rows(const float* values, int64_t count, const float* weights, float* sums, int64_t width) {
    int64_t d = 0;
    for (; d + 4 * kWidth <= width; d += 4 * kWidth) add_columns<Rows, 4>(values + d, count, weights, sums + d, width);
    for (; d < width; d += kWidth) add_columns<Rows, 1>(values + d, count, weights, sums + d, width);
  }

  template <int Rows, int Vectors>
  static void add_columns(const float* values, int64_t count, const float* weights, float* sums, int64_t width) {
    Floats sum[Rows][Vectors];
    QCOMPILE_UNROLL
    for (int row = 0; row < Rows; ++row)
      QCOMPILE_UNROLL
      for (int i = 0; i < Vectors; ++i) sum[row][i] = load<Floats>(sums + row * width + i * kWidth);
    for (int64_t key = 0; key < count; ++key)
      QCOMPILE_UNROLL
      for (int i = 0; i < Vectors; ++i) {
        const Floats value = load<Floats>(values + key * width + i * kWidth);
        QCOMPILE_UNROLL
        for (int row = 0; row < Rows; ++row) sum[row][i] += value * weights[row * kKeys + key];
      }
    QCOMPILE_UNROLL
    for (int row = 0; row < Rows; ++row)
      QCOMPILE_UNROLL
      for (int i = 0; i < Vectors; ++i) store(sums + row * width + i * kWidth, sum[row][i]);
  }
};

}  // namespace
}  // namespace qcompile
