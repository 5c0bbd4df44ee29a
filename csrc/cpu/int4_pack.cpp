// Packing, opening and unpacking of 4-bit weights; plain C++, whole words at a time.
#include <cstring>

#include "common/half.h"
#include "cpu/int4.h"

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
uint32_t pack_word(uint64_t bytes) {
  constexpr uint64_t kEven = 0x000f000f000f000full;
  return gather_nibbles(bytes & kEven) | gather_nibbles(bytes >> 8 & kEven) << 16;
}

uint64_t load_codes(const int8_t* codes, int64_t count) {
  uint64_t bytes = 0;
  if (count >= kLineK)
    std::memcpy(&bytes, codes, kLineK);  // a fixed size: one instruction
  else
    std::memcpy(&bytes, codes, static_cast<size_t>(count));
  return bytes;
}

// The flat index of the first code in k..k+7 (below `to`) that is out of range, or -1.
int64_t first_outside(const Int4Shape& shape, const int8_t* codes, int64_t row, int64_t k, int64_t to) {
  const int least = shape.has_zeros ? 0 : -8;
  for (int64_t at = row * shape.k + k; k < to; ++k, ++at)
    if (codes[at] < least || codes[at] > least + 15) return at;
  return -1;
}

void store_scale(const Int4Shape& shape, const Int4Source& source, int64_t from, uint8_t* to) {
  const size_t width = static_cast<size_t>(shape.scale_bytes());
  if (source.scale_kind == shape.scale_kind) {
    std::memcpy(to, static_cast<const uint8_t*>(source.scales) + static_cast<size_t>(from) * width, width);
    return;
  }
  const float value = static_cast<const float*>(source.scales)[from];
  const uint16_t half = shape.scale_kind == ScaleKind::bf16 ? float_to_bf16(value) : float_to_fp16(value);
  std::memcpy(to, &half, sizeof half);
}

}  // namespace

ScaleKind int4_narrowest_kind(const float* scales, int64_t count) {
  bool bf16 = true, fp16 = true;
  for (int64_t i = 0; i < count && (bf16 || fp16); ++i) {
    bf16 = bf16 && (float_bits(scales[i]) & 0xffffu) == 0;
    fp16 = fp16 && float_bits(fp16_to_float(float_to_fp16(scales[i]))) == float_bits(scales[i]);
  }
  return bf16 ? ScaleKind::bf16 : fp16 ? ScaleKind::fp16 : ScaleKind::f32;
}

void int4_write_header(const Int4Shape& shape, uint8_t* packed) {
  Int4Header header = {};
  std::memcpy(header.magic, kInt4Magic, sizeof kInt4Magic);
  header.layout = kInt4Layout;
  header.scale_kind = static_cast<uint32_t>(shape.scale_kind);
  header.n = shape.n;
  header.k = shape.k;
  header.group = shape.group;
  header.total_bytes = shape.total_bytes();
  header.has_zeros = shape.has_zeros ? 1 : 0;
  std::memcpy(packed, &header, sizeof header);
}

int64_t int4_pack_blocks(const Int4Shape& shape, const Int4Source& source, uint8_t* packed, int64_t begin, int64_t end) {
  const int64_t groups = shape.groups(), group_lines = shape.group_lines();
  uint8_t* const codes = packed + sizeof(Int4Header);
  uint8_t* const scales = codes + shape.codes_bytes();
  uint8_t* const zeros = scales + shape.scales_bytes();
  // Signed codes + 8 are 0..15 exactly when they were -8..7.
  const uint64_t offset = shape.has_zeros ? 0 : kEights;
  int64_t wrong = -1;
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t from = g * shape.group;
      const int64_t to = from + shape.group < shape.k ? from + shape.group : shape.k;
      for (int64_t lane = 0; lane < kBlock; ++lane) {
        const int64_t row = block * kBlock + lane;
        const bool inside = row < shape.n;
        uint8_t* out = codes + (block * groups + g) * group_lines * kLineBytes + lane * 4;
        for (int64_t line = 0; line < group_lines; ++line, out += kLineBytes) {
          const int64_t k = from + line * kLineK;
          uint64_t bytes = 0;
          if (inside && k < to) {
            bytes = add_bytes(load_codes(source.codes + row * shape.k + k, to - k), offset);
            if ((bytes & kOutside) != 0 && wrong < 0) wrong = first_outside(shape, source.codes, row, k, to);
          }
          const uint32_t word = pack_word(bytes);
          std::memcpy(out, &word, 4);
        }
        const int64_t meta = (block * groups + g) * kBlock + lane;
        uint8_t* const scale = scales + meta * shape.scale_bytes();
        if (inside)
          store_scale(shape, source, row * groups + g, scale);
        else
          std::memset(scale, 0, static_cast<size_t>(shape.scale_bytes()));
        if (shape.has_zeros) zeros[meta] = inside ? static_cast<uint8_t>(source.zeros[row * groups + g]) : 0;
      }
    }
  }
  return wrong;
}

const char* int4_open(const uint8_t* packed, int64_t bytes, Int4Weight* weight) {
  if (bytes < static_cast<int64_t>(sizeof(Int4Header))) return "it is shorter than the 64-byte header";
  Int4Header header;
  std::memcpy(&header, packed, sizeof header);
  if (std::memcmp(header.magic, kInt4Magic, sizeof kInt4Magic) != 0) return "it does not begin with the magic number of native_int4_pack";
  if (header.layout != kInt4Layout) return "it was packed in the layout of another qcompile version";
  constexpr int64_t kMost = int64_t{1} << 40;
  if (header.n < 0 || header.k < 0 || header.group < 1 || header.n > kMost || header.k > kMost || header.group > kMost ||
      (header.n > 0 && header.k > kMost / header.n) || header.scale_kind > 2 || header.has_zeros > 1)
    return "its header is damaged";
  Int4Shape shape;
  shape.n = header.n;
  shape.k = header.k;
  shape.group = header.group;
  shape.scale_kind = static_cast<ScaleKind>(header.scale_kind);
  shape.has_zeros = header.has_zeros != 0;
  if (shape.group_lines() > kMost / (shape.blocks() * shape.groups() + 1)) return "its header is damaged";
  shape.unused_bytes = header.total_bytes - shape.used_bytes();
  if (shape.unused_bytes < 0) return "its header is damaged";
  if (bytes != shape.total_bytes()) return "its size is not the one its header says: it was cut or extended";
  weight->shape = shape;
  weight->codes = packed + sizeof(Int4Header);
  weight->scales = weight->codes + shape.codes_bytes();
  weight->zeros = shape.has_zeros ? weight->scales + shape.scales_bytes() : nullptr;
  return nullptr;
}

void int4_unpack_row(const Int4Weight& weight, int64_t row, uint8_t* codes, float* scales, int32_t* zeros) {
  const Int4Shape& shape = weight.shape;
  const int64_t block = row / kBlock, lane = row % kBlock;
  for (int64_t k = 0; k < shape.k; ++k) {
    const int64_t g = k / shape.group, inside = k % shape.group;
    const int64_t line = (block * shape.groups() + g) * shape.group_lines() + inside / kLineK;
    uint32_t word;
    std::memcpy(&word, weight.codes + line * kLineBytes + lane * 4, 4);
    const int64_t position = inside % kLineK / 2 + (inside % 2) * 4;
    codes[k] = static_cast<uint8_t>(word >> (4 * position) & 0xfu);
  }
  for (int64_t g = 0; g < shape.groups(); ++g) {
    const int64_t meta = (block * shape.groups() + g) * kBlock + lane;
    if (shape.scale_kind == ScaleKind::f32) {
      std::memcpy(scales + g, weight.scales + meta * 4, 4);
    } else {
      uint16_t half;
      std::memcpy(&half, weight.scales + meta * 2, 2);
      scales[g] = shape.scale_kind == ScaleKind::bf16 ? bf16_to_float(half) : fp16_to_float(half);
    }
    zeros[g] = shape.has_zeros ? weight.zeros[meta] : 8;
  }
}

}  // namespace qcompile
