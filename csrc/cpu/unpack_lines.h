// Unpacks lines of 4-bit and 8-bit weights (cpu/packed.h) for products of many rows.
//
// E8M0 scales reach 2^127, times which a value of E2M1 or E4M3 may leave float32 and make NaN of zeros of x. They are taken 2^-8 times,
// which such values hold exactly down to the least scale, and the sums 2^8 times. E5M2 has no room for that at either end.
#pragma once

#include "cpu/codes.h"
#include "cpu/strips.h"

namespace qcompile {
namespace {

template <int kBits, Values kValues = Values::integers>
class UnpackLines {
 public:
  using Weight = PackedWeight;

  explicit UnpackLines(const PackedWeight& weight)
      : weight_(weight), codes_(weight), shift_(kValues != Values::e5m2 && weight.shape.scale_kind == ScaleKind::e8m0 ? 0x1p-8f : 1.0f) {}

  void unpack(int64_t block, int64_t from, int64_t count, Floats* to) const {
    const PackedShape& shape = weight_.shape;
    const int64_t each = shape.group_lines(), end = (from + count) / kLineK;
    int64_t line = from / kLineK;
    const uint8_t* at = weight_.codes + (block * shape.lines() + line) * kLineBytes;
    while (line < end) {
      const int64_t group = line / each, until = smaller((group + 1) * each, end), meta = (block * shape.groups() + group) * kBlock;
      Floats scale[kParts], zero[kParts];
      for (int part = 0; part < kParts; ++part) {
        scale[part] = load_scales(weight_, meta + part * kWidth) * shift_;
        zero[part] = load_zeros(weight_, meta + part * kWidth, kBits == 4 ? 8 : 0);
      }
      const int64_t real = group * shape.group_k() + real_k(shape, group);
      for (; line < until; ++line, at += kLineBytes, to += kLineK * kVectors) {
        fetch_ahead<Fetch::once>(at);
        put_line(at, scale, zero, to, std::make_integer_sequence<int, kLineK>());
        for (int64_t k = larger(0, real - line * kLineK); k < kLineK; ++k)
          for (int part = 0; part < kParts; ++part) to[k * kVectors + part] = Floats{};
      }
    }
  }

  Floats finished(const Floats& sum, int64_t block, int part) const { return sum / shift_ * load_outer(weight_, block, part); }

 private:
  using Codes = Decoder<kBits, kValues>;
  static constexpr int kLineK = Codes::kLineK;

  template <int... K>
  void put_line(const uint8_t* from, const Floats (&scale)[kParts], const Floats (&zero)[kParts], Floats* to,
                std::integer_sequence<int, K...>) const {
    Words line[kParts][Codes::kWords];
    codes_.line(from, line);
    QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part)
      ((to[K * kVectors + part] = scaled<K>(line[part], scale[part], zero[part])), ...);
  }

  template <int K>
  Floats scaled(const Words (&words)[Codes::kWords], const Floats& scale, const Floats& zero) const {
    const Floats value = codes_.template value<K>(words);
    if constexpr (kValues == Values::integers) return (value * Codes::factor(K) - zero) * scale;
    return value * scale;
  }

  const PackedWeight& weight_;
  const Codes codes_;
  const float shift_;
};

}  // namespace
}  // namespace qcompile
