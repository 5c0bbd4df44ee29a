// Attention for few query rows, without torch: one pass over K and V, each row of them read once for all the query heads that
// share it.
//
//   out[b, h, i] = sum_j softmax_j(scale * q[b, h, i] . k[b, h / group, j] + mask[b, h, i, j]) * v[b, h / group, j]
//
// Sums and the softmax are float32; a mask may be any of the element types or bool (true: the key is seen). With `causal`, query
// i sees keys 0..i (aligned at the top left, as in PyTorch). A query that sees no key at all (its mask is -inf everywhere) gives zeros, or NaN where the caller asks for a
// plain softmax. Keys outside what the masks let through are not read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "common/isa.h"
#include "cpu/element.h"

namespace qcompile {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kTile = 16;        // keys whose scores are computed together
constexpr int64_t kTiles = 4;        // tiles between two updates of the softmax
constexpr int64_t kKeys = kTile * kTiles;

// A tensor [batch, heads, rows, columns]; strides in elements, 0 where it is broadcast.
struct Strided {
  const void* data = nullptr;
  int64_t batch = 0, head = 0, row = 0, column = 1;
};

struct Attention {
  int64_t batch, heads, kv_heads, queries, keys, width;  // width: of a head
  Element element;      // of q, k, v and out
  Strided q, k, v;      // column stride 1
  Strided out;          // column stride 1; written
  Strided mask;         // data null: none
  Element mask_element;
  float scale;
  bool causal;
  int64_t first_query;  // what `causal` calls query 0 (a call may be a piece of a longer one)
  bool nan_if_unseen;

  int64_t group() const { return heads / kv_heads; }
  int64_t rows() const { return group() * queries; }  // query rows that share K and V: row r is head r / queries, query r % queries
};

// Which keys of a batch item have to be looked at, and the mask value up to which a key counts as unseen.
struct Visible {
  int64_t first, last;
  float unseen;
};
Visible visible_keys(const Attention& attention, int64_t batch);

// One piece of work: keys [first, last) for all query rows of one K/V head. With `partial`, the result is not finished but
// stored as rows() times (maximum, sum, width sums): float32 [rows][2 + width].
struct AttentionPart {
  int64_t batch, kv_head, first, last;
  float unseen;
  float* partial;
};

struct AttentionKernel {
  const char* name;
  size_t (*scratch_bytes)(const Attention& attention);
  // scratch: 64-byte aligned.
  void (*run)(const Attention& attention, const AttentionPart& part, void* scratch);
};

const AttentionKernel& attention_kernel(Isa isa, Element element);

// Joins `count` partial results of the same rows, `stride` floats apart.
void join_parts(const Attention& attention, int64_t batch, int64_t kv_head, const float* partial, int64_t count, int64_t stride);

// Row r of one K/V head: sums / total, rounded to the element type.
void store_attention_row(const Attention& attention, int64_t batch, int64_t kv_head, int64_t row, const float* sums, float total);

}  // namespace qcompile
