// The part of attention that all bodies share: keys in blocks of kKeys, masks, the running softmax. A Body is a struct with
//   query_bytes(a)                      bytes of one prepared query row
//   work_bytes(a)                       bytes of its own working memory
//   sum_floats(a)                       floats that it keeps for the sums of one row
//   prepare(a, from, out)               one query row
//   score(a, keys, stride, count, queries, rows, scores, work)   rows x kTile products; scores are kKeys floats apart
//   add(a, values, stride, count, weights, rows, sums, work)     sums += weights x values; weights as `score`, up to a whole tile
//   order(a, sums, out)                 one row of sums in the order of the values
#pragma once

#include "cpu/attention_mask.h"
#include "cpu/lanes.h"

namespace qcompile {
namespace {

inline const uint8_t* row_of(const Strided& tensor, Element element, int64_t batch, int64_t head, int64_t row) {
  return static_cast<const uint8_t*>(tensor.data) +
         (batch * tensor.batch + head * tensor.head + row * tensor.row) * element_bytes(element);
}

template <class Body>
class AttentionRun {
 public:
  static size_t scratch_bytes(const Attention& a) {
    const int64_t floats = a.rows() * (2 * kKeys + 1 + kWidth + Body::sum_floats(a)) + a.width + 8 * 16;
    return static_cast<size_t>(rounded_up(a.rows() * Body::query_bytes(a), 64) + rounded_up(Body::work_bytes(a), 64) + floats * 4);
  }

  static void run(const Attention& a, const AttentionPart& part, void* scratch) { AttentionRun(a, part, scratch).run(); }

 private:
  AttentionRun(const Attention& attention, const AttentionPart& which, void* scratch) : a(attention), part(which) {
    uint8_t* free = static_cast<uint8_t*>(scratch);
    const auto take = [&free](int64_t bytes) {
      uint8_t* const piece = free;
      free += rounded_up(bytes, 64);
      return piece;
    };
    const auto floats = [&take](int64_t count) { return reinterpret_cast<float*>(take(count * 4)); };
    rows = a.rows();
    mask_rows = a.mask.data == nullptr || a.mask.head == 0 ? a.queries : rows;
    queries = take(rows * Body::query_bytes(a));
    work = take(Body::work_bytes(a));
    sums = floats(rows * Body::sum_floats(a));
    scores = floats(rows * kKeys);
    mask = floats(mask_rows * kKeys);
    totals = floats(rows * kWidth);
    most = floats(rows);
    ordered = floats(a.width);
  }

  void run() {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t head = part.kv_head * a.group() + row / a.queries;
      Body::prepare(a, row_of(a.q, a.element, part.batch, head, row % a.queries), queries + row * Body::query_bytes(a));
      most[row] = kMinusInfinity;
    }
    std::memset(sums, 0, static_cast<size_t>(rows * Body::sum_floats(a)) * 4);
    std::memset(totals, 0, static_cast<size_t>(rows * kWidth) * 4);
    const int64_t width = element_bytes(a.element);
    for (int64_t key = part.first; key < part.last; key += kKeys) {
      const int64_t count = smaller(kKeys, part.last - key);
      const bool masked = a.mask.data != nullptr || a.causal || count % kTile != 0;
      if (masked && !read_mask(key, count)) continue;
      const uint8_t* const keys = row_of(a.k, a.element, part.batch, part.kv_head, key);
      for (int64_t tile = 0; tile < count; tile += kTile)
        Body::score(a, keys + tile * a.k.row * width, a.k.row, smaller(kTile, count - tile), queries, rows, scores + tile, work);
      for (int64_t row = 0; row < rows; ++row) update(row, rounded_up(count, kTile), masked);
      Body::add(a, row_of(a.v, a.element, part.batch, part.kv_head, key), a.v.row, count, scores, rows, sums, work);
    }
    for (int64_t row = 0; row < rows; ++row) finish(row);
  }

  // Mask values of a block, -inf behind its keys. False if no query sees any of them.
  bool read_mask(int64_t key, int64_t count) {
    bool seen = false;
    for (int64_t row = 0; row < mask_rows; ++row) {
      float* const out = mask + row * kKeys;
      const int64_t query = row % a.queries, head = part.kv_head * a.group() + row / a.queries;
      if (a.mask.data == nullptr)
        std::memset(out, 0, static_cast<size_t>(count) * 4);
      else if (a.mask.column == 1 && a.mask_element != Element::boolean)
        widen(a.mask_element, row_of(a.mask, a.mask_element, part.batch, head, query) + key * element_bytes(a.mask_element), count,
              rounded_up(count, kWidth), out);
      else
        for (int64_t i = 0; i < count; ++i) out[i] = mask_value(a, part.batch, head, query, key + i);
      for (int64_t i = count; i < rounded_up(count, kTile); ++i) out[i] = kMinusInfinity;
      if (a.causal) {
        const int64_t last = a.first_query + query;
        for (int64_t i = last < key ? 0 : last + 1 - key; i < count; ++i) out[i] = kMinusInfinity;
      }
      // Not `>`: a NaN in the mask is something to see.
      for (int64_t i = 0; i < count; ++i) seen |= !(out[i] <= part.unseen);
    }
    return seen;
  }

  // Scores of a row become weights exp(score - maximum); what was summed before is scaled to the new maximum.
  void update(int64_t row, int64_t count, bool masked) {
    float* const s = scores + row * kKeys;
    const float* const added = mask + row % mask_rows * kKeys;
    Floats largest = all(kMinusInfinity);
    for (int64_t i = 0; i < count; i += kWidth) {
      Floats value = load<Floats>(s + i) * a.scale;
      if (masked) value += load<Floats>(added + i);
      store(s + i, value);
      largest = larger(value, largest);
    }
    const float before = most[row], now = largest_lane(largest);
    Floats total = load<Floats>(totals + row * kWidth);
    if (now > before) {
      most[row] = now;
      const Floats factor = exp_of(all(before - now));
      total *= factor;
      float* const sum = sums + row * Body::sum_floats(a);
      for (int64_t i = 0; i < Body::sum_floats(a); i += kWidth) store(sum + i, load<Floats>(sum + i) * factor);
    }
    // Nothing seen so far: -inf - -inf would be NaN. A NaN score stays one.
    const float base = most[row] == kMinusInfinity ? 0.0f : most[row];
    for (int64_t i = 0; i < count; i += kWidth) {
      const Floats weight = exp_of(load<Floats>(s + i) - base);
      store(s + i, weight);
      total += weight;
    }
    store(totals + row * kWidth, total);
  }

  void finish(int64_t row) {
    const float* const sum = sums + row * Body::sum_floats(a);
    const float total = sum_of_lanes(load<Floats>(totals + row * kWidth));
    if (part.partial == nullptr) {
      Body::order(a, sum, ordered);
      store_attention_row(a, part.batch, part.kv_head, row, ordered, total);
      return;
    }
    float* const out = part.partial + row * (a.width + 2);
    out[0] = most[row];
    out[1] = total;
    Body::order(a, sum, out + 2);
  }

  const Attention& a;
  const AttentionPart& part;
  int64_t rows, mask_rows;
  uint8_t *queries, *work;
  float *sums, *scores, *mask, *totals, *most, *ordered;
};

}  // namespace
}  // namespace qcompile
