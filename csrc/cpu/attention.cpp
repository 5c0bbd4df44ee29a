// Which implementation of attention a level uses, which keys the masks let through, and the joining of partial results.
#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/half.h"

namespace qcompile {

extern const AttentionKernel kAttentionGeneric;
#if defined(__x86_64__)
extern const AttentionKernel kAttentionAvx2, kAttentionAvx512, kAttentionAvx512Bf16;
#elif defined(__aarch64__)
extern const AttentionKernel kAttentionNeon, kAttentionNeonBf16;
#endif

namespace {

constexpr Choice<AttentionKernel> kChoices[] = {
#if defined(__x86_64__)
    {&CpuFeatures::avx512_bf16, &kAttentionAvx512Bf16, true},
    {&CpuFeatures::avx512, &kAttentionAvx512},
    {&CpuFeatures::avx2, &kAttentionAvx2},
#elif defined(__aarch64__)
    {&CpuFeatures::neon_bf16, &kAttentionNeonBf16, true},
    {&CpuFeatures::neon, &kAttentionNeon},
#endif
    {nullptr, &kAttentionGeneric},
};

}  // namespace

namespace {

// Below this, a mask value takes a key out of the softmax of any query that sees another key: exp() of the difference is 0 in
// float32 as long as products of queries and keys stay below 1e29. Models write "unseen" as the least finite number.
constexpr float kHopeless = -1e30f;

struct Range {
  int64_t first, last;
};

constexpr int64_t kChunk = 64;

// One row of a mask, read as it is stored: the searches below go over every key of a static cache.
template <class Load>
struct MaskRow {
  Load load;
  int64_t column;
  float unseen;

  bool any(int64_t begin, int64_t end) const {
    bool found = false;
    for (int64_t key = begin; key < end; ++key) found |= !(load(key * column) <= unseen);
    return found;
  }

  // From the first to behind the last key above `unseen`; first == last if there is none.
  Range seen(int64_t last) const {
    int64_t first = 0;
    while (last - kChunk >= first && !any(last - kChunk, last)) last -= kChunk;
    while (last > first && !any(last - 1, last)) --last;
    while (first + kChunk <= last && !any(first, first + kChunk)) first += kChunk;
    while (first < last && !any(first, first + 1)) ++first;
    return {first, last};
  }
};

template <class Load>
Range seen_with(const Load& load, int64_t column, int64_t last, float unseen) {
  return MaskRow<Load>{load, column, unseen}.seen(last);
}

Range seen(const Attention& attention, int64_t batch, int64_t query, float unseen) {
  const Strided& mask = attention.mask;
  const int64_t at = batch * mask.batch + query * mask.row;
  const int64_t last = attention.causal ? std::min(attention.keys, attention.first_query + query + 1) : attention.keys;
  const float* const wide = static_cast<const float*>(mask.data) + at;
  const uint16_t* const half = static_cast<const uint16_t*>(mask.data) + at;
  const bool* const flags = static_cast<const bool*>(mask.data) + at;
  switch (attention.mask_element) {
    case Element::f32: return seen_with([wide](int64_t i) { return wide[i]; }, mask.column, last, unseen);
    case Element::bf16: return seen_with([half](int64_t i) { return bf16_to_float(half[i]); }, mask.column, last, unseen);
    case Element::fp16: return seen_with([half](int64_t i) { return fp16_to_float(half[i]); }, mask.column, last, unseen);
    case Element::boolean: break;
  }
  return seen_with([flags](int64_t i) { return flags[i] ? 0.0f : kMinusInfinity; }, mask.column, last, unseen);
}

}  // namespace

// Only bfloat16 keeps its bits in pairs of bfloat16.
const AttentionKernel& attention_kernel(Isa isa, Element element) { return first_of(kChoices, isa, element == Element::bf16); }

Visible visible_keys(const Attention& attention, int64_t batch) {
  Visible all = {0, attention.keys, kMinusInfinity};
  if (attention.causal) all.last = std::min(attention.keys, attention.first_query + attention.queries);
  // A mask of its own for every head would cost as much to search as the keys themselves; the kernel still skips by tiles.
  if (attention.mask.data == nullptr || attention.mask.head != 0) return all;
  Visible found = {attention.keys, 0, kHopeless};
  const int64_t distinct = attention.mask.row == 0 && !attention.causal ? 1 : attention.queries;
  for (int64_t query = 0; query < distinct; ++query) {
    Range range = seen(attention, batch, query, kHopeless);
    if (range.first == range.last) {
      // Nothing to compare the least finite number with: such keys weigh the same. Only -inf is unseen.
      found.unseen = kMinusInfinity;
      range = seen(attention, batch, query, kMinusInfinity);
      if (range.first == range.last) continue;
    }
    found.first = std::min(found.first, range.first);
    found.last = std::max(found.last, range.last);
  }
  if (found.first >= found.last) return {0, 0, kMinusInfinity};
  return found;
}

void store_attention_row(const Attention& attention, int64_t batch, int64_t kv_head, int64_t row, const float* sums, float total) {
  const int64_t head = kv_head * attention.group() + row / attention.queries, query = row % attention.queries;
  const int64_t at = batch * attention.out.batch + head * attention.out.head + query * attention.out.row;
  const bool unseen = total == 0.0f;
  const float empty = attention.nan_if_unseen && attention.keys > 0 ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  const float factor = 1.0f / total;
  float* const wide = static_cast<float*>(const_cast<void*>(attention.out.data)) + at;
  uint16_t* const half = static_cast<uint16_t*>(const_cast<void*>(attention.out.data)) + at;
  for (int64_t d = 0; d < attention.width; ++d) {
    const float value = unseen ? empty : sums[d] * factor;
    if (attention.element == Element::f32)
      wide[d] = value;
    else
      half[d] = attention.element == Element::bf16 ? float_to_bf16(value) : float_to_fp16(value);
  }
}

void join_parts(const Attention& attention, int64_t batch, int64_t kv_head, const float* partial, int64_t count, int64_t stride) {
  std::vector<float> sums(static_cast<size_t>(attention.width));
  const int64_t row_floats = attention.width + 2;
  for (int64_t row = 0; row < attention.rows(); ++row) {
    const float* const first = partial + row * row_floats;
    float most = kMinusInfinity, total = 0.0f;
    for (int64_t part = 0; part < count; ++part) most = std::max(most, first[part * stride]);
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t part = 0; part < count; ++part) {
      const float* const from = first + part * stride;
      if (from[1] == 0.0f) continue;  // this part holds nothing that the row sees
      const float factor = std::exp(from[0] - most);
      total += from[1] * factor;
      for (int64_t d = 0; d < attention.width; ++d) sums[static_cast<size_t>(d)] += from[2 + d] * factor;
    }
    store_attention_row(attention, batch, kv_head, row, sums.data(), total);
  }
}

}  // namespace qcompile
