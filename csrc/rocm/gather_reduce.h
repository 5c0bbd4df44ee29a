// The two small kernels around the product: activations in packed order, and the sum of the parts of a split K.
#pragma once

#include "formats.h"

namespace qcompile_rdna3 {

constexpr int kGatherThreads = 256;
constexpr int kReduceThreads = 256;

#if QC_KERNEL_BODY

// gathered[row, k] = a[row, perm[k]]: once per product instead of once per block of columns. Eight values per thread.
QC_INLINE void gather_columns(const uint16_t* a, const int32_t* perm, uint16_t* gathered, int m, int k) {
  const int at = (block_y() * kGatherThreads + thread_index()) * 8;
  if (at >= k || block_x() >= m) return;
  const int4_t low = load<int4_t>(perm + at), high = load<int4_t>(perm + at + 4);
  const size_t row = (size_t)block_x() * (size_t)k;
  bits8_t values;
  for (int i = 0; i < 4; ++i) values[i] = load<uint16_t>(a + row + within(low[i], k));
  for (int i = 0; i < 4; ++i) values[4 + i] = load<uint16_t>(a + row + within(high[i], k));
  store(gathered + row + at, values);
}

// out[i] = sum over s = 0, 1, .. of partial[s, i], in this order; four values per thread.
template <class Format>
QC_INLINE void sum_parts(const float* partial, uint16_t* out, int count, int splits) {
  const int at = (block_x() * kReduceThreads + thread_index()) * 4;
  if (at >= count) return;
  float4_t sum = load<float4_t>(partial + at);
  for (int split = 1; split < splits; ++split) sum += load<float4_t>(partial + (size_t)split * (size_t)count + at);
  bits4_t four;
  for (int i = 0; i < 4; ++i) four[i] = Format::narrow(sum[i]);
  store(out + at, four);
}

#endif

}  // namespace qcompile_rdna3
