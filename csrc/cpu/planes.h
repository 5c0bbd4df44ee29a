// The packed layout of integer codes at their own width, with zero points, offsets and scales of two levels; the same for every ISA.
// No torch here.
//
//   W[n, k] = (u[n, k] - z[n, g]) * s[n, g] * o[n, h] + m[n, g] * p[n, h]      g = k / group, h = k / outer_group
//
// u is 0 .. 2^bits - 1 (8 bit: -128 .. 127, kept plus 128); without zero points z is 2^(bits - 1) for codes that were signed, else 0
// (8 bit: 0). Without outer scales o is 1, without outer offsets p is 1, without offsets m is 0.
//
// All integers little endian, nothing aligned beyond what the 64-byte header leaves aligned:
//   64 bytes       PlanesHeader
//   codes          [blocks of 16 outputs][tiles][bits lines] of 64 bytes: word i of a tile (fields.h) of 16 outputs is its line i.
//                  Groups begin at half tiles (16 positions) and are padded to them with codes 0.
//   inner          [blocks][inner tiles][inner_bits lines]: scales and offsets that are integers, of 4, 6 or 8 bits in the same kind of
//                  tiles. In a row stand for each group its scale and its offset, those of the two that are integers; signed ones
//                  plus 2^(inner_bits - 1).
//   scales         [blocks][groups][16] as bfloat16, float16 or float32, unless they are integers
//   offsets        the same
//   zeros          [blocks][groups][16] bytes (8 bit: signed)
//   outer          [blocks][outer groups][16] as bfloat16, float16 or float32
//   outer offsets  the same
//   (unused)       the room that float32 numbers left which a 16-bit format holds exactly
// Outputs beyond n have scale and offset 0, and so has a group whose weights are all zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/fields.h"
#include "cpu/packed.h"

namespace qcompile {

enum class NumberKind : uint8_t { none = 0, bf16 = 1, fp16 = 2, f32 = 3, inner = 4 };

constexpr char kPlanesMagic[4] = {'Q', 'C', 'P', 'L'};
constexpr uint32_t kPlanesLayout = 1;
constexpr uint8_t kPlanesZeros = 1, kSignedCodes = 2, kSignedScales = 4, kSignedOffsets = 8;

struct PlanesHeader {
  char magic[4];
  uint32_t layout;
  uint8_t bits, scales, offsets, outer, outer_offset, inner_bits, flags, reserved;
  int64_t n, k, group, outer_group, total_bytes;
  uint32_t check;  // a hash of everything above
  uint32_t unused;
};
static_assert(sizeof(PlanesHeader) == 64, "the header is one line");

// Everything that follows from the header's numbers.
struct PlanesShape {
  int64_t n = 0, k = 0, group = 0, outer_group = 0;
  int bits = 4, inner_bits = 0;
  NumberKind scales = NumberKind::bf16, offsets = NumberKind::none, outer = NumberKind::none, outer_offset = NumberKind::none;
  uint8_t flags = 0;
  int64_t unused_bytes = 0;

  static int64_t bytes_of(NumberKind kind) {
    return kind == NumberKind::f32 ? 4 : kind == NumberKind::bf16 || kind == NumberKind::fp16 ? 2 : 0;
  }

  bool has(uint8_t flag) const { return (flags & flag) != 0; }
  int implied_zero() const { return bits < 8 && has(kSignedCodes) ? 1 << (bits - 1) : 0; }
  int64_t blocks() const { return (n + kBlock - 1) / kBlock; }
  int64_t groups() const { return (k + group - 1) / group; }
  int64_t outer_groups() const { return (k + outer_group - 1) / outer_group; }
  int64_t groups_per_outer() const { return (outer_group + group - 1) / group; }
  int64_t group_halves() const { return (group + kHalfK - 1) / kHalfK; }
  int64_t group_k() const { return group_halves() * kHalfK; }
  int64_t padded_k() const { return groups() * group_k(); }
  int64_t tiles() const { return (groups() * group_halves() + 1) / 2; }
  int64_t lines() const { return tiles() * bits; }
  int64_t inner_fields() const { return (scales == NumberKind::inner ? 1 : 0) + (offsets == NumberKind::inner ? 1 : 0); }
  int64_t inner_tiles() const { return (groups() * inner_fields() + kTileK - 1) / kTileK; }
  int64_t meta() const { return blocks() * groups() * kBlock; }
  int64_t outer_meta() const { return blocks() * outer_groups() * kBlock; }
  int64_t codes_bytes() const { return blocks() * lines() * kLineBytes; }
  int64_t inner_bytes() const { return blocks() * inner_tiles() * inner_bits * kLineBytes; }
  int64_t scales_at() const { return static_cast<int64_t>(sizeof(PlanesHeader)) + codes_bytes() + inner_bytes(); }
  int64_t offsets_at() const { return scales_at() + meta() * bytes_of(scales); }
  int64_t zeros_at() const { return offsets_at() + meta() * bytes_of(offsets); }
  int64_t outer_at() const { return zeros_at() + (has(kPlanesZeros) ? meta() : 0); }
  int64_t outer_offset_at() const { return outer_at() + outer_meta() * bytes_of(outer); }
  int64_t used_bytes() const { return outer_offset_at() + outer_meta() * bytes_of(outer_offset); }
  int64_t total_bytes() const { return used_bytes() + unused_bytes; }
};

// A packed weight as kernels read it; null where a part is not there.
struct PlanesWeight {
  PlanesShape shape;
  const uint8_t* codes = nullptr;
  const uint8_t* inner = nullptr;
  const uint8_t* scales = nullptr;
  const uint8_t* offsets = nullptr;
  const uint8_t* zeros = nullptr;
  const uint8_t* outer = nullptr;
  const uint8_t* outer_offset = nullptr;
};

// Numbers of a source: floats of a kind, or (inner) bytes.
struct Numbers {
  const void* data = nullptr;
  NumberKind kind = NumberKind::none;
  bool is_signed = false;

  double at(int64_t index) const;
};

struct PlanesSource {
  const int8_t* codes;   // [n, k]
  const int8_t* zeros;   // [n, groups] or null
  Numbers scales, offsets;  // [n, groups]
  Numbers outer, outer_offset;  // [n, outer groups]
};

// The narrowest kind that holds all of these.
NumberKind narrowest_of(const Numbers& numbers, int64_t count);

void write_planes_header(const PlanesShape& shape, uint8_t* packed);

// Packs blocks [begin, end). Returns -1, or the flat index in `codes` of some code that is out of range.
int64_t pack_planes(const PlanesShape& shape, const PlanesSource& source, uint8_t* packed, int64_t begin, int64_t end);

// Null, or what is wrong with the `bytes` bytes at `packed` as such a weight; fills `weight` when nothing is.
const char* open_planes(const uint8_t* packed, int64_t bytes, PlanesWeight* weight);

// The inverse of packing for one row: k codes (u above), and for each group s * o, z and m * p.
void unpack_planes_row(const PlanesWeight& weight, int64_t row, int32_t* codes, double* scales, int32_t* zeros, double* offsets);

}  // namespace qcompile
