// The packed layout of 4-bit and 8-bit weights, the same for every ISA, and how to make and open it. No torch here.
//
//   W[n, k] = (u[n, k] - z[n, k / group]) * s[n, k / group] * o[n]
//
// 4 bit: u is 0..15; symmetric weights keep no zeros, their z is 8. 8 bit: u is -128..127; without zeros z is 0.
// 4 bit with a code book: W[n, k] = book[u[n, k]] * s[n, k / group] * o[n]. Without outer scales o is 1. 8 bit may also be the bits of
// numbers in E4M3 or E5M2, which stand in the place of book[u].
//
// All integers little endian, nothing aligned beyond what the 64-byte header leaves aligned:
//   64 bytes   PackedHeader
//   book       16 float32, only with a code book
//   codes      [blocks of 16 outputs][groups][lines per group] of 64 bytes. A line holds one 32-bit word for each output:
//              8 bit: k = 0..3 from the lowest byte up. 4 bit: k = 0..7; nibble p of the low half is k = 2p, nibble p of the
//              high half is k = 2p + 1, so that a shift right by 4p leaves pairs (2p, 2p + 1) ready for a dot product of pairs,
//              and masking every second nibble leaves four bytes (0 4 1 5, then 2 6 3 7) ready for one of bytes.
//   scales     [blocks][groups][16] (or [1], where all outputs of a block share them), as bfloat16, float16, float32, E4M3 or E8M0: float32 ones that a 16-bit format holds exactly
//              are stored in it, in the room of float32 (so that the size follows from shapes and dtypes alone)
//   zeros      [blocks][groups][16] bytes, only with zero points (4 bit: 0..16, 8 bit: signed)
//   sums       [blocks][groups][16] int32, only integers of 8 bit: the codes of a group added up
//   outer      [blocks][16] float32, only with outer scales
//   (unused)   the room that narrower scales left
// A group that does not fill its last line is padded with codes 0; outputs beyond n have scale 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qcompile {

enum class ScaleKind : uint32_t { bf16 = 0, fp16 = 1, f32 = 2, e4m3 = 3, e8m0 = 4 };
constexpr uint32_t kScaleKinds = 5;

// What codes stand for: themselves, an entry of a code book of 16, or a number in 8 bits.
enum class Values : uint32_t { integers = 0, book = 1, e4m3 = 2, e5m2 = 3 };

constexpr int64_t kBlock = 16;  // outputs of one block
constexpr int64_t kLineBytes = 64;
constexpr int64_t kBookEntries = 16;
constexpr char kPackedMagic[8] = {'Q', 'C', 'L', 'I', 'N', 'E', 'A', 'R'};
constexpr uint32_t kPackedLayout = 1;

struct PackedHeader {
  char magic[8];
  uint32_t layout;
  uint16_t bits;
  uint8_t scale_kind;
  uint8_t parts;  // of kPartZeros and so on those that there are
  int64_t n, k, group, total_bytes;
  uint32_t check;  // a hash of everything above
  uint32_t reserved[3];
};
static_assert(sizeof(PackedHeader) == 64, "the header is one line");
constexpr uint8_t kPartZeros = 1, kPartBook = 2, kPartOuter = 4, kPartE4m3 = 8, kPartE5m2 = 16, kPartShared = 32, kPartsAll = 63;

// Everything that follows from the header's numbers.
struct PackedShape {
  int64_t n = 0, k = 0, group = 0;
  int bits = 4;
  ScaleKind scale_kind = ScaleKind::bf16;
  Values values = Values::integers;
  bool has_zeros = false, has_outer = false;
  bool shared_scales = false;  // one for all outputs of a block
  int64_t unused_bytes = 0;

  int64_t line_k() const { return 32 / bits; }
  int64_t blocks() const { return (n + kBlock - 1) / kBlock; }
  int64_t groups() const { return (k + group - 1) / group; }
  int64_t group_lines() const { return (group + line_k() - 1) / line_k(); }
  int64_t lines() const { return groups() * group_lines(); }
  int64_t group_k() const { return group_lines() * line_k(); }
  int64_t padded_k() const { return lines() * line_k(); }
  int64_t scale_bytes() const {
    return scale_kind == ScaleKind::f32 ? 4 : scale_kind == ScaleKind::bf16 || scale_kind == ScaleKind::fp16 ? 2 : 1;
  }
  int64_t meta() const { return blocks() * groups() * kBlock; }
  int64_t codes_bytes() const { return blocks() * lines() * kLineBytes; }
  int64_t scales_bytes() const { return (shared_scales ? meta() / kBlock : meta()) * scale_bytes(); }
  int64_t zeros_bytes() const { return has_zeros ? meta() : 0; }
  bool has_book() const { return values == Values::book; }
  bool has_sums() const { return bits == 8 && values == Values::integers; }
  int64_t sums_bytes() const { return has_sums() ? meta() * 4 : 0; }
  int64_t outer_bytes() const { return has_outer ? blocks() * kBlock * 4 : 0; }
  int64_t codes_at() const { return static_cast<int64_t>(sizeof(PackedHeader)) + (has_book() ? kBookEntries * 4 : 0); }
  int64_t used_bytes() const { return codes_at() + codes_bytes() + scales_bytes() + zeros_bytes() + sums_bytes() + outer_bytes(); }
  int64_t total_bytes() const { return used_bytes() + unused_bytes; }
};

// A packed weight as kernels read it.
struct PackedWeight {
  PackedShape shape;
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  const uint8_t* zeros = nullptr;
  const uint8_t* sums = nullptr;
  const uint8_t* outer = nullptr;
  const uint8_t* book = nullptr;
};

struct PackSource {
  const int8_t* codes;   // [n, k]; 4 bit: -8..7 without zeros, 0..15 with or with a book; 8 bit: any
  const void* scales;    // [n, groups], or [blocks, groups] if shared, of `scale_kind`
  ScaleKind scale_kind;  // the shape's, or f32 where the shape's holds all of them exactly
  const int8_t* zeros;   // [n, groups] or null
  const float* outer = nullptr;  // [n] or null
  const float* book = nullptr;   // [kBookEntries] or null
};

// The narrowest kind that holds every one of `count` scales exactly.
ScaleKind narrowest_kind(const float* scales, int64_t count);

// Writes the header and the book.
void write_header(const PackedShape& shape, const PackSource& source, uint8_t* packed);

// Packs blocks [begin, end). Returns -1, or the flat index in `codes` of some code that is out of range.
int64_t pack_blocks(const PackedShape& shape, const PackSource& source, uint8_t* packed, int64_t begin, int64_t end);

// Null, or what is wrong with the `bytes` bytes at `packed` as a weight of `bits` bits whose codes are of that kind; fills `weight` when
// nothing is.
const char* open_packed(const uint8_t* packed, int64_t bytes, int bits, Values values, PackedWeight* weight);

// Whether bfloat16 holds every entry of the weight's code book.
bool has_bf16_book(const PackedWeight& weight);

// The inverse of packing for one row: k codes (u above), `groups` scales (times o) and zeros (z above; 0 for others than integers).
void unpack_row(const PackedWeight& weight, int64_t row, int32_t* codes, float* scales, int32_t* zeros);

}  // namespace qcompile
