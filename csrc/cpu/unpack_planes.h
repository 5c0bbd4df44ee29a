// Unpacks codes at their own width (cpu/planes.h) for products of many rows.
#pragma once

#include "cpu/planes_body.h"
#include "cpu/strips.h"

namespace qcompile {
namespace {

template <int kBits>
class UnpackPlanes {
 public:
  using Weight = PlanesWeight;

  explicit UnpackPlanes(const PlanesWeight& weight) : weight_(weight) {
    begin_meta(weight, &meta_);
    Body::find_places(places_, std::make_integer_sequence<int, kTileK>());
  }

  void unpack(int64_t block, int64_t from, int64_t count, Floats* to) {
    const PlanesShape& shape = weight_.shape;
    const int64_t each = shape.group_halves(), end = (from + count) / kHalfK, last_group = (end - 1) / each;
    const uint8_t* const tiles = weight_.codes + block * shape.lines() * kLineBytes;
    int64_t half = from / kHalfK, known = -1;
    while (half < end) {
      const int64_t group = half / each, until = smaller((group + 1) * each, end), chunk = group / Meta::kGroups;
      if (chunk != known) {
        const int64_t first = chunk * Meta::kGroups;
        read_meta(weight_, block, first, smaller(Meta::kGroups, last_group + 1 - first), &meta_);
        known = chunk;
      }
      Floats codes[kStripK][kParts];
      Body::decode_run(tiles, half, until - half, codes);
      const int64_t positions = (until - half) * kHalfK, at = half * kHalfK;
      const int64_t real = smaller(positions, larger(0, group * shape.group_k() + real_k(shape, group) - at));
      scale(codes, group % Meta::kGroups, at, real, to);
      for (int64_t i = real * kVectors; i < positions * kVectors; i += kVectors)
        for (int part = 0; part < kParts; ++part) to[i + part] = Floats{};
      to += positions * kVectors;
      half = until;
    }
  }

  static Floats finished(const Floats& sum, int64_t, int) { return sum; }

 private:
  using Body = PlanesBody<kBits, 1>;

  void scale(const Floats (*codes)[kParts], int64_t group, int64_t at, int64_t count, Floats* to) const {
    for (int part = 0; part < kParts; ++part) {
      const Floats scale = load<Floats>(meta_.scale[group] + part * kWidth), zero = load<Floats>(meta_.zero[group] + part * kWidth);
      const Floats offset = weight_.offsets == nullptr ? Floats{} : load<Floats>(meta_.offset[group] + part * kWidth);
      for (int64_t i = 0; i < count; ++i)
        to[i * kVectors + part] = (codes[i][part] * places_[(at + i) % kTileK] - zero) * scale + offset;
    }
  }

  const PlanesWeight& weight_;
  Meta meta_;
  float places_[kTileK];
};

}  // namespace
}  // namespace qcompile
