// Packing, opening and unpacking of codes at their own width; plain C++.
#include "cpu/planes.h"

#include <cstring>
#include <vector>

#include "common/half.h"

namespace qcompile {
namespace {

float number(NumberKind kind, const void* data, int64_t index) {
  if (kind == NumberKind::f32) return static_cast<const float*>(data)[index];
  const uint16_t half = static_cast<const uint16_t*>(data)[index];
  return kind == NumberKind::bf16 ? bf16_to_float(half) : fp16_to_float(half);
}

// Stores one number of a source in the shape's kind, which holds it exactly.
void store(const Numbers& from, int64_t index, NumberKind kind, bool nothing, uint8_t* to, int64_t place) {
  const float value = nothing ? 0.0f : static_cast<float>(from.at(index));
  if (kind == NumberKind::f32) {
    std::memcpy(to + place * 4, &value, 4);
    return;
  }
  const uint16_t half = kind == NumberKind::bf16 ? float_to_bf16(value) : float_to_fp16(value);
  std::memcpy(to + place * 2, &half, 2);
}

// FNV-1a over the fields of a header; http://www.isthe.com/chongo/tech/comp/fnv
uint32_t header_check(const PlanesHeader& header) {
  const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(&header);
  uint32_t hash = 2166136261u;
  for (size_t i = 0; i < offsetof(PlanesHeader, check); ++i) hash = (hash ^ bytes[i]) * 16777619u;
  return hash;
}

using ToWords = void (*)(const uint8_t*, uint32_t*);
constexpr ToWords kToWords[] = {nullptr, to_words<1>, to_words<2>, to_words<3>, to_words<4>, to_words<5>, to_words<6>, to_words<7>, to_words<8>};
using FromWords = uint32_t (*)(const uint32_t*, int);
constexpr FromWords kFromWords[] = {nullptr,       from_words<1>, from_words<2>, from_words<3>, from_words<4>,
                                    from_words<5>, from_words<6>, from_words<7>, from_words<8>};

void store_tile(int bits, const uint8_t* codes, uint8_t* tile, int64_t lane) {
  uint32_t words[8];
  kToWords[bits](codes, words);
  for (int word = 0; word < bits; ++word) std::memcpy(tile + word * kLineBytes + lane * 4, &words[word], 4);
}

uint32_t load_code(int bits, const uint8_t* tile, int64_t lane, int position) {
  uint32_t words[8];
  for (int word = 0; word < bits; ++word) std::memcpy(&words[word], tile + word * kLineBytes + lane * 4, 4);
  return kFromWords[bits](words, position);
}

// The codes of one row, tile after tile. Returns as pack_planes does.
int64_t pack_codes(const PlanesShape& shape, const int8_t* codes, int64_t row, uint8_t* tiles, int64_t lane) {
  const int base = shape.bits == 8 ? 128 : shape.implied_zero(), most = (1 << shape.bits) - 1;
  const int64_t halves = shape.group_halves();
  const int8_t* const from = codes + row * shape.k;
  int64_t wrong = -1;
  for (int64_t tile = 0; tile < shape.tiles(); ++tile) {
    uint8_t unsigned_codes[kTileK] = {};
    for (int64_t side = 0; side < 2; ++side) {
      const int64_t half = tile * 2 + side, g = half / halves, begin = g * shape.group + half % halves * kHalfK;
      const int64_t group_end = (g + 1) * shape.group < shape.k ? (g + 1) * shape.group : shape.k;
      for (int64_t i = 0; i < kHalfK && begin + i < group_end; ++i) {
        const int code = from[begin + i] + base;
        if (code < 0 || code > most) wrong = row * shape.k + begin + i;
        unsigned_codes[side * kHalfK + i] = static_cast<uint8_t>(code);
      }
    }
    store_tile(shape.bits, unsigned_codes, tiles + tile * shape.bits * kLineBytes, lane);
  }
  return wrong;
}

// Whether every weight of the group is zero. Sums of x times stored codes and what is taken off again cancel only up to rounding, so
// such a group gets scale and offset 0: then its part of the result is exactly zero, as it is in the dense product.
bool is_zero(const PlanesShape& shape, const PlanesSource& source, int64_t row, int64_t g, int64_t h) {
  const int64_t at = row * shape.groups() + g, outer = row * shape.outer_groups() + h;
  const int8_t* const codes = source.codes + row * shape.k;
  const int64_t begin = g * shape.group, end = begin + shape.group < shape.k ? begin + shape.group : shape.k;
  for (int64_t k = begin + 1; k < end; ++k)
    if (codes[k] != codes[begin]) return false;
  const int zero = source.zeros == nullptr ? 0 : source.zeros[at];
  const double scale = source.scales.at(at) * (shape.outer == NumberKind::none ? 1.0 : source.outer.at(outer));
  const double offset = shape.offsets == NumberKind::none ? 0.0 : source.offsets.at(at);
  const double shift = shape.outer_offset == NumberKind::none ? offset : offset * source.outer_offset.at(outer);
  return (codes[begin] - zero) * scale + shift == 0.0;
}

struct Parts {
  uint8_t *codes, *inner, *scales, *offsets, *zeros, *outer, *outer_offset;

  Parts(const PlanesShape& shape, uint8_t* packed)
      : codes(packed + sizeof(PlanesHeader)),
        inner(codes + shape.codes_bytes()),
        scales(packed + shape.scales_at()),
        offsets(packed + shape.offsets_at()),
        zeros(packed + shape.zeros_at()),
        outer(packed + shape.outer_at()),
        outer_offset(packed + shape.outer_offset_at()) {}
};

uint8_t inner_code(const PlanesShape& shape, const Numbers& numbers, int64_t index, bool nothing) {
  const int bias = numbers.is_signed ? 1 << (shape.inner_bits - 1) : 0;
  return static_cast<uint8_t>((nothing ? 0 : static_cast<int>(numbers.at(index))) + bias);
}

// Scales, offsets and zero points of one row; rows beyond n have zeros everywhere.
void pack_meta(const PlanesShape& shape, const PlanesSource& source, const Parts& parts, int64_t row) {
  const int64_t block = row / kBlock, lane = row % kBlock, groups = shape.groups(), fields = shape.inner_fields();
  const bool outside = row >= shape.n;
  std::vector<uint8_t> inner(static_cast<size_t>(shape.inner_tiles() * kTileK));
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t at = row * groups + g, place = (block * groups + g) * kBlock + lane;
    const bool nothing = outside || is_zero(shape, source, row, g, g / shape.groups_per_outer());
    size_t field = static_cast<size_t>(g * fields);
    if (shape.scales == NumberKind::inner)
      inner[field++] = inner_code(shape, source.scales, at, nothing);
    else
      store(source.scales, at, shape.scales, nothing, parts.scales, place);
    if (shape.offsets == NumberKind::inner)
      inner[field] = inner_code(shape, source.offsets, at, nothing);
    else if (shape.offsets != NumberKind::none)
      store(source.offsets, at, shape.offsets, nothing, parts.offsets, place);
    if (shape.has(kPlanesZeros)) parts.zeros[place] = outside ? 0 : static_cast<uint8_t>(source.zeros[at]);
  }
  for (int64_t tile = 0; tile < shape.inner_tiles(); ++tile)
    store_tile(shape.inner_bits, inner.data() + tile * kTileK,
               parts.inner + (block * shape.inner_tiles() + tile) * shape.inner_bits * kLineBytes, lane);
  for (int64_t h = 0; h < shape.outer_groups(); ++h) {
    const int64_t at = row * shape.outer_groups() + h, place = (block * shape.outer_groups() + h) * kBlock + lane;
    if (shape.outer != NumberKind::none) store(source.outer, at, shape.outer, outside, parts.outer, place);
    if (shape.outer_offset != NumberKind::none) store(source.outer_offset, at, shape.outer_offset, outside, parts.outer_offset, place);
  }
}

bool is_float(NumberKind kind) { return kind >= NumberKind::bf16 && kind <= NumberKind::f32; }

// Whether the header's numbers are such as packing writes.
bool plausible(const PlanesHeader& header) {
  constexpr int64_t kMost = int64_t{1} << 40;
  const auto scales = static_cast<NumberKind>(header.scales), offsets = static_cast<NumberKind>(header.offsets);
  const auto outer = static_cast<NumberKind>(header.outer), shift = static_cast<NumberKind>(header.outer_offset);
  const bool inner = scales == NumberKind::inner || offsets == NumberKind::inner;
  const int width = header.inner_bits;
  return header.n >= 1 && header.n <= kMost && header.k >= 1 && header.k <= kMost / header.n && header.group >= 1 &&
         header.group <= header.k && header.outer_group >= header.group && header.outer_group <= header.k &&
         (header.outer_group == header.k || header.outer_group % header.group == 0) && header.bits >= 1 && header.bits <= 8 &&
         (is_float(scales) || scales == NumberKind::inner) && header.offsets <= 4 && (is_float(outer) || outer == NumberKind::none) &&
         (is_float(shift) || shift == NumberKind::none) && (inner ? width == 4 || width == 6 || width == 8 : width == 0) && header.flags < 16;
}

}  // namespace

double Numbers::at(int64_t index) const {
  if (kind != NumberKind::inner) return number(kind, data, index);
  return is_signed ? static_cast<const int8_t*>(data)[index] : static_cast<const uint8_t*>(data)[index];
}

NumberKind narrowest_of(const Numbers& numbers, int64_t count) {
  if (numbers.kind != NumberKind::f32) return numbers.kind;
  const ScaleKind kind = narrowest_kind(static_cast<const float*>(numbers.data), count);
  return kind == ScaleKind::bf16 ? NumberKind::bf16 : kind == ScaleKind::fp16 ? NumberKind::fp16 : NumberKind::f32;
}

void write_planes_header(const PlanesShape& shape, uint8_t* packed) {
  PlanesHeader header = {};
  std::memcpy(header.magic, kPlanesMagic, sizeof kPlanesMagic);
  header.layout = kPlanesLayout;
  header.bits = static_cast<uint8_t>(shape.bits);
  header.scales = static_cast<uint8_t>(shape.scales);
  header.offsets = static_cast<uint8_t>(shape.offsets);
  header.outer = static_cast<uint8_t>(shape.outer);
  header.outer_offset = static_cast<uint8_t>(shape.outer_offset);
  header.inner_bits = static_cast<uint8_t>(shape.inner_bits);
  header.flags = shape.flags;
  header.n = shape.n;
  header.k = shape.k;
  header.group = shape.group;
  header.outer_group = shape.outer_group;
  header.total_bytes = shape.total_bytes();
  header.check = header_check(header);
  std::memcpy(packed, &header, sizeof header);
}

int64_t pack_planes(const PlanesShape& shape, const PlanesSource& source, uint8_t* packed, int64_t begin, int64_t end) {
  const Parts parts(shape, packed);
  int64_t wrong = -1;
  for (int64_t block = begin; block < end; ++block) {
    uint8_t* const tiles = parts.codes + block * shape.lines() * kLineBytes;
    if ((block + 1) * kBlock > shape.n) std::memset(tiles, 0, static_cast<size_t>(shape.lines() * kLineBytes));
    for (int64_t row = block * kBlock; row < (block + 1) * kBlock; ++row) {
      if (row < shape.n) {
        const int64_t at = pack_codes(shape, source.codes, row, tiles, row % kBlock);
        if (at >= 0) wrong = at;
      }
      pack_meta(shape, source, parts, row);
    }
  }
  return wrong;
}

const char* open_planes(const uint8_t* packed, int64_t bytes, PlanesWeight* weight) {
  if (bytes < static_cast<int64_t>(sizeof(PlanesHeader))) return "it is shorter than the 64-byte header";
  PlanesHeader header;
  std::memcpy(&header, packed, sizeof header);
  if (std::memcmp(header.magic, kPlanesMagic, sizeof kPlanesMagic) != 0) return "it does not begin with the magic number of such weights";
  if (header.layout != kPlanesLayout) return "it was packed in the layout of another qcompile version";
  if (header.check != header_check(header) || !plausible(header)) return "its header is damaged";
  PlanesShape shape;
  shape.n = header.n;
  shape.k = header.k;
  shape.group = header.group;
  shape.outer_group = header.outer_group;
  shape.bits = header.bits;
  shape.inner_bits = header.inner_bits;
  shape.scales = static_cast<NumberKind>(header.scales);
  shape.offsets = static_cast<NumberKind>(header.offsets);
  shape.outer = static_cast<NumberKind>(header.outer);
  shape.outer_offset = static_cast<NumberKind>(header.outer_offset);
  shape.flags = header.flags;
  shape.unused_bytes = header.total_bytes - shape.used_bytes();
  if (shape.unused_bytes < 0) return "its header is damaged";
  if (bytes != shape.total_bytes()) return "its size is not the one its header says: it was cut or extended";
  weight->shape = shape;
  weight->codes = packed + sizeof(PlanesHeader);
  weight->inner = shape.inner_bits != 0 ? weight->codes + shape.codes_bytes() : nullptr;
  weight->scales = packed + shape.scales_at();
  weight->offsets = shape.offsets != NumberKind::none ? packed + shape.offsets_at() : nullptr;
  weight->zeros = shape.has(kPlanesZeros) ? packed + shape.zeros_at() : nullptr;
  weight->outer = shape.outer != NumberKind::none ? packed + shape.outer_at() : nullptr;
  weight->outer_offset = shape.outer_offset != NumberKind::none ? packed + shape.outer_offset_at() : nullptr;
  return nullptr;
}

void unpack_planes_row(const PlanesWeight& weight, int64_t row, int32_t* codes, double* scales, int32_t* zeros, double* offsets) {
  const PlanesShape& shape = weight.shape;
  const int64_t block = row / kBlock, lane = row % kBlock, fields = shape.inner_fields();
  for (int64_t k = 0; k < shape.k; ++k) {
    const int64_t position = k / shape.group * shape.group_k() + k % shape.group;
    const uint8_t* const tile = weight.codes + (block * shape.tiles() + position / kTileK) * shape.bits * kLineBytes;
    const int32_t code = static_cast<int32_t>(load_code(shape.bits, tile, lane, static_cast<int>(position % kTileK)));
    codes[k] = shape.bits == 8 ? code - 128 : code;
  }
  const auto inner = [&](int64_t field, uint8_t sign) {
    const uint8_t* const tile = weight.inner + (block * shape.inner_tiles() + field / kTileK) * shape.inner_bits * kLineBytes;
    const int code = static_cast<int>(load_code(shape.inner_bits, tile, lane, static_cast<int>(field % kTileK)));
    return static_cast<double>(code - (shape.has(sign) ? 1 << (shape.inner_bits - 1) : 0));
  };
  for (int64_t g = 0; g < shape.groups(); ++g) {
    const int64_t at = (block * shape.groups() + g) * kBlock + lane;
    const int64_t outer = (block * shape.outer_groups() + g / shape.groups_per_outer()) * kBlock + lane;
    scales[g] = shape.scales == NumberKind::inner ? inner(g * fields, kSignedScales) : number(shape.scales, weight.scales, at);
    if (weight.outer != nullptr) scales[g] *= number(shape.outer, weight.outer, outer);
    offsets[g] = shape.offsets == NumberKind::none    ? 0.0
                 : shape.offsets == NumberKind::inner ? inner(g * fields + fields - 1, kSignedOffsets)
                                                      : number(shape.offsets, weight.offsets, at);
    if (weight.outer_offset != nullptr) offsets[g] *= number(shape.outer_offset, weight.outer_offset, outer);
    zeros[g] = weight.zeros == nullptr ? shape.implied_zero() : shape.bits == 8 ? static_cast<int8_t>(weight.zeros[at]) : weight.zeros[at];
  }
}

}  // namespace qcompile
