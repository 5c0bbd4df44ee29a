// Quantized products of one kernel at a time, with every buffer allocated at exactly its size, and the plain sums to compare with.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "cpu/linear.h"
#include "exact.h"

namespace qcompile {
namespace {

// N, K, group: around the block of 16 outputs and the lines of 4 and 8 values; with groups that do not divide K.
constexpr int64_t kShapes[][3] = {{1, 1, 1},    {1, 7, 7},     {15, 9, 3},    {16, 32, 16},   {17, 33, 33},
                                  {31, 40, 8},  {33, 100, 32}, {5, 530, 530}, {16, 1024, 128}};
constexpr int64_t kRows[] = {1, 2, 3, 5, 6, 12, 13, 17, 25};

struct Packed {
  PackedShape shape;
  Bytes bytes;
  PackedWeight weight;
};

// book: codes of one, with scales of that kind and outer ones; values: numbers of 8 bits, with shared scales.
[[maybe_unused]] Packed make(int64_t n, int64_t k, int64_t group, int bits, bool zeros, ScaleKind kind, const float* book = nullptr,
                             Values values = Values::integers) {
  Packed made;
  PackedShape& shape = made.shape;
  shape.n = n;
  shape.k = k;
  shape.group = group;
  shape.bits = bits;
  shape.has_zeros = zeros;
  shape.scale_kind = kind;
  shape.values = book != nullptr ? Values::book : values;
  shape.has_outer = book != nullptr;
  const bool numbers_8 = values != Values::integers;
  shape.shared_scales = numbers_8 && n > kBlock && k % 2 == 0;
  const int64_t groups = shape.groups();
  const auto code = [&] { return static_cast<int8_t>(numbers_8 ? numbers() % 64 + numbers() % 2 * 128 : bits == 8 ? numbers() % 256 : zeros || book ? numbers() % 16 : numbers() % 16 - 8); };
  const auto point = [&] { return static_cast<int8_t>(bits == 8 ? numbers() % 256 : numbers() % 17); };
  std::unique_ptr<int8_t[]> codes(new int8_t[n * k]), points(new int8_t[n * groups]);
  std::generate_n(codes.get(), n * k, code);
  std::generate_n(points.get(), n * groups, point);
  const int64_t scale_count = (shape.shared_scales ? shape.blocks() : n) * groups;
  const Bytes scales = exactly(scale_count * shape.scale_bytes());
  for (int64_t i = 0; i < scale_count; ++i) {
    if (shape.scale_bytes() == 1)
      scales.get()[i] = static_cast<uint8_t>(kind == ScaleKind::e4m3 ? 0x38 + numbers() % 8 : 126 + numbers() % 3);
    else
      put(scales.get(), kind, i, 1.0f + static_cast<float>(numbers() % 8) / 8.0f);
  }
  const Bytes outer = some_values(Dtype::f32, n);
  made.bytes = exactly(shape.total_bytes());
  const PackSource source = {codes.get(), scales.get(), kind, zeros ? points.get() : nullptr, book ? outer.as<float>() : nullptr, book};
  write_header(shape, source, made.bytes.get());
  for (int64_t block = 0; block < shape.blocks(); ++block)
    require(pack_blocks(shape, source, made.bytes.get(), block, block + 1) == -1, "codes in range");
  require(open_packed(made.bytes.get(), shape.total_bytes(), bits, shape.values, &made.weight) == nullptr, "open what was packed");
  // The round trip.
  std::unique_ptr<int32_t[]> row(new int32_t[k]), row_zeros(new int32_t[groups]);
  std::unique_ptr<float[]> row_scales(new float[groups]);
  for (int64_t i = 0; i < n; ++i) {
    unpack_row(made.weight, i, row.get(), row_scales.get(), row_zeros.get());
    const int shift = bits == 4 && !zeros && !book ? 8 : 0;
    for (int64_t j = 0; j < k; ++j) require(row[j] == codes[i * k + j] + shift, "codes survive packing");
    for (int64_t g = 0; g < groups; ++g) require(row_zeros[g] == (zeros ? points[i * groups + g] : shift), "zeros survive packing");
  }
  return made;
}

// How x is rounded for one of the three variants of a weight.
[[maybe_unused]] Activation activation_of(int bits, int variant) {
  Activation activation;
  activation.rounding = static_cast<Rounding>(bits == 4 ? (variant == 2 ? 3 : 0) : variant);
  activation.scale = 1.0f / 64.0f;
  return activation;
}

// Random x and bias for a weight, half of the time in another order of K.
class Product {
 public:
  Product(const Packed& packed, Dtype dtype, int64_t m, const Activation& activation)
      : packed_(packed), dtype_(dtype), m_(m), n_(packed.shape.n), k_(packed.shape.k), activation_(activation) {
    x_ = some_values(dtype_, m_ * k_);
    order_ = exactly(k_ * 8);
    std::iota(order(), order() + k_, 0);
    permuted_ = m_ % 2 == 1;
    if (permuted_) std::shuffle(order(), order() + k_, numbers);
    bias_ = some_values(Dtype::f32, n_);
  }

  int64_t bytes() const { return m_ * n_ * bytes_of(dtype_); }

  // In two pieces, as two threads would do it.
  Bytes run(const LinearKernel& kernel) const {
    const LinearInput input = {x_.get(), dtype_, m_, k_, permuted_ ? order() : nullptr, activation_};
    Bytes y = exactly(bytes());
    const LinearOutput output = {y.get(), n_, bias_.as<float>()};
    const int64_t panels = kernel.panels(dtype_, m_);
    const Bytes prepared = exactly(kernel.prepared_bytes(packed_.shape, dtype_, m_));
    for (int64_t panel = 0; panel < panels; ++panel) kernel.prepare(packed_.weight, input, prepared.get(), panel, panel + 1);
    const int64_t middle = packed_.shape.blocks() / 2;
    kernel.run(packed_.weight, input, prepared.get(), output, 0, middle);
    kernel.run(packed_.weight, input, prepared.get(), output, middle, packed_.shape.blocks());
    return y;
  }

  // Sums of x as it is, in double. Kernels take codes and zero points apart, so errors are relative to the terms of both, even
  // where they cancel.
  void plain_sums() {
    sums_.clear();
    size_ = 1e-9;
    std::vector<int32_t> codes(k_), zeros(packed_.shape.groups());
    std::vector<float> scales(packed_.shape.groups());
    for (int64_t column = 0; column < n_; ++column) {
      unpack_row(packed_.weight, column, codes.data(), scales.data(), zeros.data());
      for (int64_t row = 0; row < m_; ++row) {
        double sum = bias_.as<float>()[column], terms = 0;
        for (int64_t j = 0; j < k_; ++j) {
          const int64_t g = j / packed_.shape.group;
          const double scaled = static_cast<double>(scales[g]) * value_at(x_.get(), dtype_, row * k_ + order()[j]);
          const double value = value_of(codes[j]);
          const double term = (std::abs(value) + std::abs(zeros[g])) * scaled;
          sum += (value - zeros[g]) * scaled;
          terms += term * term;
        }
        sums_.push_back(sum);
        size_ += sum * sum + terms;
      }
    }
  }

  // How far y is from the plain sums, relative to them and their terms.
  double error(const uint8_t* y) const {
    double total = 0;
    for (int64_t i = 0; i < m_ * n_; ++i) {
      const double difference = value_at(y, dtype_, i % m_ * n_ + i / m_) - sums_[i];
      total += difference * difference;
    }
    return std::sqrt(total / size_);
  }

  // How far two results are from each other, by the same measure.
  double apart(const uint8_t* y, const uint8_t* other) const {
    double total = 0;
    for (int64_t i = 0; i < m_ * n_; ++i) {
      const double difference = value_at(y, dtype_, i) - value_at(other, dtype_, i);
      total += difference * difference;
    }
    return std::sqrt(total / size_);
  }

  // What rounding y and sums in float32 may cost.
  double tolerance() const { return dtype_ == Dtype::f32 ? 1e-6 : dtype_ == Dtype::fp16 ? 6e-4 : 4e-3; }

 private:
  double value_of(int32_t code) const {
    const Values values = packed_.shape.values;
    if (values == Values::e4m3) return e4m3_to_float(static_cast<uint8_t>(code));
    if (values == Values::e5m2) return e5m2_to_float(static_cast<uint8_t>(code));
    if (values == Values::integers) return code;
    float entry;
    std::memcpy(&entry, packed_.weight.book + code * 4, 4);
    return entry;
  }

  int64_t* order() const { return order_.as<int64_t>(); }

  const Packed& packed_;
  Dtype dtype_;
  int64_t m_, n_, k_;
  Activation activation_;
  bool permuted_;
  Bytes x_, order_, bias_;
  std::vector<double> sums_;
  double size_ = 0;
};

}  // namespace
}  // namespace qcompile
