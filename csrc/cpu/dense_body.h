// The loops around dense products that all bodies share. A Body is a struct with
//   row_bytes(d)                               bytes of one prepared row of x
//   prepare_row(d, from, out)                  one row of x
//   dots<Rows>(d, weight, x, out)              one row of the weight times Rows prepared rows of x: float [Rows]
#pragma once

#include "common/half.h"
#include "cpu/dense.h"
#include "cpu/lanes.h"

namespace qcompile {
namespace {

// The processor looks ahead far enough for one row, not for two: then lines of the weight are asked for this much earlier.
constexpr int64_t kDenseAhead = 2048;

// Sums of one row side by side, so that they do not wait for each other.
constexpr int parts_of(int rows) { return rows == 1 ? 4 : 2; }

template <class Body>
struct DenseRun {
  static size_t prepared_bytes(const Dense& d) { return static_cast<size_t>(d.m * Body::row_bytes(d)); }

  static void prepare(const Dense& d, void* prepared) {
    for (int64_t row = 0; row < d.m; ++row)
      Body::prepare_row(d, static_cast<const uint8_t*>(d.x) + row * d.x_stride * element_bytes(d.element),
                        static_cast<uint8_t*>(prepared) + row * Body::row_bytes(d));
  }

  static void run(const Dense& d, const void* prepared, int64_t begin, int64_t end) {
    d.m == 1 ? outputs<1>(d, prepared, begin, end) : outputs<2>(d, prepared, begin, end);
  }

  // One output after the other: a single stream through memory is read a third faster than four side by side.
  template <int Rows>
  static void outputs(const Dense& d, const void* prepared, int64_t begin, int64_t end) {
    const int64_t bytes = d.weight_stride * element_bytes(d.element);
    const uint8_t* const weight = static_cast<const uint8_t*>(d.weight);
    float sums[Rows];
    for (int64_t n = begin; n < end; ++n) {
      Body::template dots<Rows>(d, weight + n * bytes, static_cast<const uint8_t*>(prepared), sums);
      write<Rows>(d, n, sums);
    }
  }

  template <int Rows>
  static void write(const Dense& d, int64_t n, const float* sums) {
    const float bias = d.bias == nullptr ? 0.0f : read(d, n);
    for (int row = 0; row < Rows; ++row) {
      const float value = sums[row] + bias;
      const int64_t at = row * d.y_stride + n;
      if (d.element == Element::f32)
        static_cast<float*>(d.y)[at] = value;
      else
        static_cast<uint16_t*>(d.y)[at] = d.element == Element::bf16 ? float_to_bf16(value) : float_to_fp16(value);
    }
  }

  static float read(const Dense& d, int64_t n) {
    if (d.element == Element::f32) return static_cast<const float*>(d.bias)[n];
    const uint16_t half = static_cast<const uint16_t*>(d.bias)[n];
    return d.element == Element::bf16 ? bf16_to_float(half) : fp16_to_float(half);
  }
};

// float32 products, for every element type and every ISA.
struct DenseFloatBody {
  static int64_t row_bytes(const Dense& d) { return rounded_up(d.k, kWidth) * 4 + 64; }

  static void prepare_row(const Dense& d, const uint8_t* from, uint8_t* out) {
    widen(d.element, from, d.k, rounded_up(d.k, kWidth), reinterpret_cast<float*>(out));
  }

  template <int Rows>
  static void dots(const Dense& d, const uint8_t* weight, const uint8_t* x, float* out) {
    if (d.element == Element::f32) return dots_of<Rows, Element::f32>(d, weight, x, out);
    if (d.element == Element::bf16) return dots_of<Rows, Element::bf16>(d, weight, x, out);
    return dots_of<Rows, Element::fp16>(d, weight, x, out);
  }

  template <Element Kind>
  static Floats read(const uint8_t* from) {
    if constexpr (Kind == Element::f32) return load<Floats>(from);
    if constexpr (Kind == Element::bf16) return from_bf16(load<Halves>(from));
    if constexpr (Kind == Element::fp16) return from_fp16(load<Halves>(from));
  }

  template <int Rows, Element Kind>
  static void dots_of(const Dense& d, const uint8_t* weight, const uint8_t* x, float* out) {
    constexpr int64_t kBytes = element_bytes(Kind);
    constexpr int kParts = parts_of(Rows);
    const int64_t row = row_bytes(d) / 4;
    const float* const wide = reinterpret_cast<const float*>(x);
    Floats sum[Rows][kParts] = {};
    int64_t k = 0;
    for (; k + kParts * kWidth <= d.k; k += kParts * kWidth) {
      QCOMPILE_UNROLL
      for (int part = 0; part < kParts; ++part) {
        const Floats w = read<Kind>(weight + (k + part * kWidth) * kBytes);
        if constexpr (Rows > 1) __builtin_prefetch(weight + (k + part * kWidth) * kBytes + kDenseAhead);
        QCOMPILE_UNROLL
        for (int r = 0; r < Rows; ++r) sum[r][part] += w * load<Floats>(wide + r * row + k + part * kWidth);
      }
    }
    for (; k < d.k; k += kWidth) {
      float some[kWidth];
      widen(Kind, weight + k * kBytes, smaller(kWidth, d.k - k), kWidth, some);
      const Floats w = load<Floats>(some);
      QCOMPILE_UNROLL
      for (int r = 0; r < Rows; ++r) sum[r][0] += w * load<Floats>(wide + r * row + k);
    }
    QCOMPILE_UNROLL
    for (int r = 0; r < Rows; ++r) {
      Floats total = sum[r][0];
      QCOMPILE_UNROLL
      for (int part = 1; part < kParts; ++part) total += sum[r][part];
      out[r] = sum_of_lanes(total);
    }
  }
};

}  // namespace
}  // namespace qcompile
