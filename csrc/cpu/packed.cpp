// Packing, opening and unpacking of 4-bit and 8-bit weights; plain C++, whole words at a time.
#include "cpu/packed.h"

#include <cstring>

#include "common/half.h"

namespace qcompile {
namespace {

constexpr uint64_t kLowBits = 0x7f7f7f7f7f7f7f7full;
constexpr uint64_t kHighBits = 0x8080808080808080ull;
constexpr uint64_t kEights = 0x0808080808080808ull;
constexpr uint64_t kOutside = 0xf0f0f0f0f0f0f0f0ull;

uint64_t add_bytes(uint64_t a, uint64_t b) { return ((a & kLowBits) + (b & kLowBits)) ^ ((a ^ b) & kHighBits); }

// Four nibbles, 16 bits apart, to the low 16 bits.
uint32_t gather_nibbles(uint64_t spread) {
  spread = (spread | spread >> 12) & 0x000000ff000000ffull;
  return static_cast<uint32_t>((spread | spread >> 24) & 0xffffu);
}

// Eight codes of 0..15, one a byte, lowest k first, to the word of a line.
uint32_t nibble_word(uint64_t bytes) {
  constexpr uint64_t kEven = 0x000f000f000f000full;
  return gather_nibbles(bytes & kEven) | gather_nibbles(bytes >> 8 & kEven) << 16;
}

template <class Word, int64_t kCount>
Word load_codes(const int8_t* codes, int64_t count) {
  Word bytes = 0;
  if (count >= kCount)
    std::memcpy(&bytes, codes, kCount);  // a fixed size: one instruction
  else if (count > 0)
    std::memcpy(&bytes, codes, static_cast<size_t>(count));
  return bytes;
}

// The flat index of the first 4-bit code in k..k+7 (below `to`) that is out of range, or -1.
int64_t first_outside(const PackedShape& shape, const int8_t* codes, int64_t row, int64_t k, int64_t to) {
  const int least = shape.has_zeros || shape.has_book() ? 0 : -8;
  for (int64_t at = row * shape.k + k; k < to; ++k, ++at)
    if (codes[at] < least || codes[at] > least + 15) return at;
  return -1;
}

// FNV-1a over the fields of a header; http://www.isthe.com/chongo/tech/comp/fnv
uint32_t header_check(const PackedHeader& header) {
  const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(&header);
  uint32_t hash = 2166136261u;
  for (size_t i = 0; i < offsetof(PackedHeader, check); ++i) hash = (hash ^ bytes[i]) * 16777619u;
  return hash;
}

constexpr uint8_t kPartValues = kPartBook | kPartE4m3 | kPartE5m2;

uint8_t part_of(Values values) {
  switch (values) {
    case Values::book: return kPartBook;
    case Values::e4m3: return kPartE4m3;
    case Values::e5m2: return kPartE5m2;
    case Values::integers: break;
  }
  return 0;
}

const char* what_it_holds(uint8_t parts) {
  switch (parts & kPartValues) {
    case 0: return "it holds integer codes";
    case kPartBook: return "it holds codes of a code book";
    case kPartE4m3: return "it holds numbers in E4M3";
    case kPartE5m2: return "it holds numbers in E5M2";
  }
  return "its header is damaged";
}

struct GroupPlace {
  int64_t row, from, to;  // of the codes
  uint8_t* out;           // this output's word in the group's first line
};

int64_t pack_nibbles(const PackedShape& shape, const PackSource& source, const GroupPlace& place) {
  // Signed codes + 8 are 0..15 exactly when they were -8..7.
  const uint64_t offset = shape.has_zeros || shape.has_book() ? 0 : kEights;
  const int8_t* const codes = source.codes + place.row * shape.k;
  uint8_t* out = place.out;
  int64_t wrong = -1;
  for (int64_t k = place.from; k < place.to; k += 8, out += kLineBytes) {
    const uint64_t bytes = add_bytes(load_codes<uint64_t, 8>(codes + k, place.to - k), offset);
    if ((bytes & kOutside) != 0 && wrong < 0) wrong = first_outside(shape, source.codes, place.row, k, place.to);
    const uint32_t word = nibble_word(bytes);
    std::memcpy(out, &word, 4);
  }
  return wrong;
}

int32_t pack_bytes(const PackedShape& shape, const PackSource& source, const GroupPlace& place) {
  const int8_t* const codes = source.codes + place.row * shape.k;
  uint8_t* out = place.out;
  int32_t sum = 0;
  for (int64_t k = place.from; k < place.to; k += 4, out += kLineBytes) {
    const uint32_t word = load_codes<uint32_t, 4>(codes + k, place.to - k);
    std::memcpy(out, &word, 4);
    sum += static_cast<int8_t>(word) + static_cast<int8_t>(word >> 8) + static_cast<int8_t>(word >> 16) + static_cast<int8_t>(word >> 24);
  }
  return sum;
}

void store_scale(const PackedShape& shape, const PackSource& source, int64_t from, uint8_t* to) {
  const size_t width = static_cast<size_t>(shape.scale_bytes());
  if (source.scale_kind == shape.scale_kind) {
    std::memcpy(to, static_cast<const uint8_t*>(source.scales) + static_cast<size_t>(from) * width, width);
    return;
  }
  const float value = static_cast<const float*>(source.scales)[from];
  const uint16_t half = shape.scale_kind == ScaleKind::bf16 ? float_to_bf16(value) : float_to_fp16(value);
  std::memcpy(to, &half, sizeof half);
}

// Whether every weight of the group is zero. Sums of x times stored codes and what is taken off again cancel only up to rounding, so
// such a group gets the scale 0: then its part of the result is exactly zero, as it is in the dense product. Of others than integers
// nothing is taken off.
bool is_zero(const PackedShape& shape, const PackSource& source, const GroupPlace& place, int64_t meta) {
  if (shape.values != Values::integers) return false;
  const int8_t zero = shape.has_zeros ? source.zeros[meta] : 0;
  const int8_t* const codes = source.codes + place.row * shape.k;
  for (int64_t k = place.from; k < place.to; ++k)
    if (codes[k] != zero) return false;
  return true;
}

float scale_at(const PackedWeight& weight, int64_t meta) {
  const ScaleKind kind = weight.shape.scale_kind;
  const uint8_t* const at = weight.scales + (weight.shape.shared_scales ? meta / kBlock : meta) * weight.shape.scale_bytes();
  float wide;
  uint16_t half;
  switch (kind) {
    case ScaleKind::f32: std::memcpy(&wide, at, 4); return wide;
    case ScaleKind::e4m3: return e4m3_to_float(*at);
    case ScaleKind::e8m0: return e8m0_to_float(*at);
    case ScaleKind::bf16:
    case ScaleKind::fp16: break;
  }
  std::memcpy(&half, at, 2);
  return kind == ScaleKind::bf16 ? bf16_to_float(half) : fp16_to_float(half);
}

}  // namespace

ScaleKind narrowest_kind(const float* scales, int64_t count) {
  bool bf16 = true, fp16 = true;
  for (int64_t i = 0; i < count && (bf16 || fp16); ++i) {
    bf16 = bf16 && (float_bits(scales[i]) & 0xffffu) == 0;
    fp16 = fp16 && float_bits(fp16_to_float(float_to_fp16(scales[i]))) == float_bits(scales[i]);
  }
  return bf16 ? ScaleKind::bf16 : fp16 ? ScaleKind::fp16 : ScaleKind::f32;
}

void write_header(const PackedShape& shape, const PackSource& source, uint8_t* packed) {
  PackedHeader header = {};
  std::memcpy(header.magic, kPackedMagic, sizeof kPackedMagic);
  header.layout = kPackedLayout;
  header.bits = static_cast<uint16_t>(shape.bits);
  header.scale_kind = static_cast<uint8_t>(shape.scale_kind);
  header.parts = static_cast<uint8_t>((shape.has_zeros ? kPartZeros : 0) | part_of(shape.values) | (shape.has_outer ? kPartOuter : 0) |
                                      (shape.shared_scales ? kPartShared : 0));
  header.n = shape.n;
  header.k = shape.k;
  header.group = shape.group;
  header.total_bytes = shape.total_bytes();
  header.check = header_check(header);
  std::memcpy(packed, &header, sizeof header);
  if (shape.has_book()) std::memcpy(packed + sizeof header, source.book, kBookEntries * sizeof(float));
}

int64_t pack_blocks(const PackedShape& shape, const PackSource& source, uint8_t* packed, int64_t begin, int64_t end) {
  const int64_t groups = shape.groups(), group_bytes = shape.group_lines() * kLineBytes;
  uint8_t* const codes = packed + shape.codes_at();
  uint8_t* const scales = codes + shape.codes_bytes();
  uint8_t* const zeros = scales + shape.scales_bytes();
  uint8_t* const sums = zeros + shape.zeros_bytes();
  uint8_t* const outer = sums + shape.sums_bytes();
  int64_t wrong = -1;
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t row = block * kBlock; shape.has_outer && row < (block + 1) * kBlock; ++row) {
      const float scale = row < shape.n ? source.outer[row] : 0.0f;
      std::memcpy(outer + row * 4, &scale, 4);
    }
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t meta = (block * groups + g) * kBlock;
      uint8_t* const group = codes + (block * groups + g) * group_bytes;
      // Only an incomplete block or group leaves words unwritten.
      if ((block + 1) * kBlock > shape.n || (g + 1) * shape.group > shape.k) std::memset(group, 0, static_cast<size_t>(group_bytes));
      for (int64_t lane = 0; lane < kBlock; ++lane) {
        GroupPlace place;
        place.row = block * kBlock + lane;
        place.from = g * shape.group;
        place.to = place.from + shape.group < shape.k ? place.from + shape.group : shape.k;
        place.out = group + lane * 4;
        const bool inside = place.row < shape.n;
        int32_t sum = 0;
        if (inside && shape.bits == 4) {
          const int64_t at = pack_nibbles(shape, source, place);
          if (at >= 0) wrong = at;
        } else if (inside) {
          sum = pack_bytes(shape, source, place);
        }
        if (shape.shared_scales) {
          if (lane == 0) store_scale(shape, source, block * groups + g, scales + (block * groups + g) * shape.scale_bytes());
          continue;
        }
        uint8_t* const scale = scales + (meta + lane) * shape.scale_bytes();
        if (inside && !is_zero(shape, source, place, place.row * groups + g))
          store_scale(shape, source, place.row * groups + g, scale);
        else
          std::memset(scale, 0, static_cast<size_t>(shape.scale_bytes()));
        if (shape.has_zeros) zeros[meta + lane] = inside ? static_cast<uint8_t>(source.zeros[place.row * groups + g]) : 0;
        if (shape.has_sums()) std::memcpy(sums + (meta + lane) * 4, &sum, 4);
      }
    }
  }
  return wrong;
}

const char* open_packed(const uint8_t* packed, int64_t bytes, int bits, Values values, PackedWeight* weight) {
  if (bytes < static_cast<int64_t>(sizeof(PackedHeader))) return "it is shorter than the 64-byte header";
  PackedHeader header;
  std::memcpy(&header, packed, sizeof header);
  if (std::memcmp(header.magic, kPackedMagic, sizeof kPackedMagic) != 0) return "it does not begin with the magic number of packed weights";
  if (header.layout != kPackedLayout) return "it was packed in the layout of another qcompile version";
  constexpr int64_t kMost = int64_t{1} << 40;
  const char* const damaged = "its header is damaged";
  if (header.check != header_check(header)) return damaged;
  if (header.bits != bits) return header.bits == 4 ? "it holds 4-bit weights" : "it holds 8-bit weights";
  if (header.n < 1 || header.k < 1 || header.group < 1 || header.n > kMost || header.group > header.k || header.scale_kind >= kScaleKinds ||
      header.parts > kPartsAll || header.k > kMost / header.n)
    return damaged;
  if ((header.parts & kPartValues) != part_of(values)) return what_it_holds(header.parts);
  PackedShape shape;
  shape.n = header.n;
  shape.k = header.k;
  shape.group = header.group;
  shape.bits = bits;
  shape.scale_kind = static_cast<ScaleKind>(header.scale_kind);
  shape.has_zeros = (header.parts & kPartZeros) != 0;
  shape.values = values;
  shape.has_outer = (header.parts & kPartOuter) != 0;
  shape.shared_scales = (header.parts & kPartShared) != 0;
  shape.unused_bytes = header.total_bytes - shape.used_bytes();
  if (shape.unused_bytes < 0) return damaged;
  if (bytes != shape.total_bytes()) return "its size is not the one its header says: it was cut or extended";
  weight->shape = shape;
  weight->book = shape.has_book() ? packed + sizeof(PackedHeader) : nullptr;
  weight->codes = packed + shape.codes_at();
  weight->scales = weight->codes + shape.codes_bytes();
  const uint8_t* const zeros = weight->scales + shape.scales_bytes();
  weight->zeros = shape.has_zeros ? zeros : nullptr;
  const uint8_t* const sums = zeros + shape.zeros_bytes();
  weight->sums = shape.has_sums() ? sums : nullptr;
  weight->outer = shape.has_outer ? sums + shape.sums_bytes() : nullptr;
  return nullptr;
}

bool has_bf16_book(const PackedWeight& weight) {
  for (int64_t i = 0; weight.book != nullptr && i < kBookEntries; ++i) {
    uint16_t low;
    std::memcpy(&low, weight.book + i * 4, sizeof low);
    if (low != 0) return false;
  }
  return true;
}

void unpack_row(const PackedWeight& weight, int64_t row, int32_t* codes, float* scales, int32_t* zeros) {
  const PackedShape& shape = weight.shape;
  const int64_t block = row / kBlock, lane = row % kBlock, groups = shape.groups(), line_k = shape.line_k();
  for (int64_t k = 0; k < shape.k; ++k) {
    const int64_t g = k / shape.group, inside = k % shape.group;
    const int64_t line = (block * groups + g) * shape.group_lines() + inside / line_k;
    uint32_t word;
    std::memcpy(&word, weight.codes + line * kLineBytes + lane * 4, 4);
    const int64_t at = inside % line_k;
    codes[k] = shape.bits == 8 ? static_cast<int8_t>(word >> (8 * at)) : static_cast<int32_t>(word >> (4 * (at / 2 + at % 2 * 4)) & 15u);
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t meta = (block * groups + g) * kBlock + lane;
    scales[g] = scale_at(weight, meta);
    if (shape.has_outer) {
      float outer;
      std::memcpy(&outer, weight.outer + row * 4, 4);
      scales[g] *= outer;
    }
    if (shape.has_zeros)
      zeros[g] = shape.bits == 4 ? weight.zeros[meta] : static_cast<int8_t>(weight.zeros[meta]);
    else
      zeros[g] = shape.bits == 4 && !shape.has_book() ? 8 : 0;
  }
}

}  // namespace qcompile
