// 4-bit weights times wide activations, without torch: packed layout, packing, and one kernel table row per ISA.
//
//   y[m, n] = sum_k x[m, k] * (u[n, k] - z[n, k / group]) * s[n, k / group] + bias[n]
//
// u is 0..15. Symmetric weights keep no zeros: their z is 8.
//
// Packed layout, the same for every ISA (all integers little endian):
//   64 bytes   Int4Header
//   codes      [blocks of 16 outputs][groups][lines per group] of 64 bytes. A line holds 8 values of k for 16 outputs:
//              one 32-bit word per output, in which nibble p of the low half is k = 2p and nibble p of the high half is
//              k = 2p + 1. Shifting a line right by 4p so leaves pairs (2p, 2p + 1) ready for a dot product of pairs.
//   scales     [blocks][groups][16], as bfloat16, float16 or float32: float32 ones that a 16-bit format holds exactly are
//              stored in it, in the room of float32 (so that the size follows from shapes and dtypes alone)
//   zeros      [blocks][groups][16] bytes, only with asymmetric weights
//   (unused)   the room that narrower scales left
// A group that is no multiple of 8 is padded to one; padded outputs have scale 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"

namespace qcompile {

enum class Dtype : int { bf16 = 0, fp16 = 1, f32 = 2 };
enum class ScaleKind : uint32_t { bf16 = 0, fp16 = 1, f32 = 2 };

constexpr int64_t kBlock = 16;  // outputs of one block
constexpr int64_t kLineK = 8;   // values of k in one line
constexpr int64_t kLineBytes = 64;
constexpr char kInt4Magic[8] = {'Q', 'C', 'I', 'N', 'T', '4', '\0', '\0'};
constexpr uint32_t kInt4Layout = 1;

struct Int4Header {
  char magic[8];
  uint32_t layout;
  uint32_t scale_kind;
  int64_t n, k, group, total_bytes;
  uint32_t has_zeros;
  uint32_t reserved[3];
};
static_assert(sizeof(Int4Header) == 64, "the header is one line");

// Everything that follows from n, k, group and the two flags.
struct Int4Shape {
  int64_t n = 0, k = 0, group = 0;
  ScaleKind scale_kind = ScaleKind::bf16;
  bool has_zeros = false;
  int64_t unused_bytes = 0;

  int64_t blocks() const { return (n + kBlock - 1) / kBlock; }
  int64_t groups() const { return k == 0 ? 0 : (k + group - 1) / group; }
  int64_t group_lines() const { return (group + kLineK - 1) / kLineK; }
  int64_t lines() const { return groups() * group_lines(); }
  int64_t padded_k() const { return lines() * kLineK; }
  bool k_is_padded() const { return padded_k() != k; }
  int64_t scale_bytes() const { return scale_kind == ScaleKind::f32 ? 4 : 2; }
  int64_t codes_bytes() const { return blocks() * lines() * kLineBytes; }
  int64_t scales_bytes() const { return blocks() * groups() * kBlock * scale_bytes(); }
  int64_t zeros_bytes() const { return has_zeros ? blocks() * groups() * kBlock : 0; }
  int64_t used_bytes() const {
    return static_cast<int64_t>(sizeof(Int4Header)) + codes_bytes() + scales_bytes() + zeros_bytes();
  }
  int64_t total_bytes() const { return used_bytes() + unused_bytes; }
};

// A packed weight as kernels read it. Nothing is aligned beyond a byte.
struct Int4Weight {
  Int4Shape shape;
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  const uint8_t* zeros = nullptr;
};

// ---- packing -------------------------------------------------------------------------------------------------------

struct Int4Source {
  const int8_t* codes;   // [n, k]; -8..7 without zeros, 0..15 with
  const void* scales;    // [n, groups] of `scale_kind`
  ScaleKind scale_kind;  // the shape's, or f32 where the shape's holds all of them exactly
  const int8_t* zeros;   // [n, groups], 0..16, or null
};

// The narrowest kind that holds every one of `count` scales exactly.
ScaleKind int4_narrowest_kind(const float* scales, int64_t count);

void int4_write_header(const Int4Shape& shape, uint8_t* packed);

// Packs blocks [begin, end). Returns -1, or the flat index in `codes` of some code that is out of range.
int64_t int4_pack_blocks(const Int4Shape& shape, const Int4Source& source, uint8_t* packed, int64_t begin, int64_t end);

// Null, or what is wrong with the `bytes` bytes at `packed` as an int4 weight; fills `weight` when nothing is.
const char* int4_open(const uint8_t* packed, int64_t bytes, Int4Weight* weight);

// The inverse of packing for one row: k codes 0..15, `groups` scales and zeros (8 where symmetric).
void int4_unpack_row(const Int4Weight& weight, int64_t row, uint8_t* codes, float* scales, int32_t* zeros);

// ---- product -------------------------------------------------------------------------------------------------------

struct Int4Input {
  const void* x;        // [m, k] of `dtype`, rows `stride` elements apart
  Dtype dtype;
  int64_t m, stride;
  const int64_t* perm;  // null, or k indices: position j of the weight reads x[:, perm[j]]
};

struct Int4Output {
  void* y;             // [m, n] of the input's dtype, rows `stride` elements apart
  int64_t stride;
  const float* bias;   // null or [n]
};

// One implementation. Weights are decoded on the way to the multiplier, so there is no scratch. A caller splits m into
// chunks of at most max_rows, prepares the input of a chunk once (ranges of panels, in parallel if it likes) and then runs
// ranges of blocks (in parallel).
struct Int4Kernel {
  const char* name;
  // Rows of one preparation: bounded so that the prepared input stays in cache.
  int64_t (*max_rows)(const Int4Shape& shape);
  int64_t (*prepared_bytes)(const Int4Shape& shape, Dtype dtype, int64_t m);
  int64_t (*panels)(Dtype dtype, int64_t m);
  void (*prepare)(const Int4Weight& weight, const Int4Input& input, void* prepared, int64_t begin, int64_t end);
  void (*run)(const Int4Weight& weight, const Int4Input& input, const void* prepared, const Int4Output& output,
              int64_t begin, int64_t end);
};

// The implementation that a level uses for a dtype.
const Int4Kernel& int4_kernel(Isa isa, Dtype dtype);

}  // namespace qcompile
