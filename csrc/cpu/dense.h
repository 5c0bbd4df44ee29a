// Products of a few rows with a dense weight, y = x @ W.T + bias, without torch. The weight is read as it lies, [n, k], once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"
#include "cpu/element.h"

namespace qcompile {

constexpr int64_t kMostDenseRows = 2;  // of x: with more, PyTorch's own product is as fast

struct Dense {
  int64_t m, n, k;     // m up to kMostDenseRows
  Element element;     // of x, weight, bias and y
  const void* x;       // rows `x_stride` elements apart
  const void* weight;  // rows `weight_stride` elements apart
  const void* bias;    // null or [n]
  void* y;             // rows `y_stride` elements apart
  int64_t x_stride, weight_stride, y_stride;
};

struct DenseKernel {
  const char* name;
  size_t (*prepared_bytes)(const Dense& dense);
  // x as `run` reads it; prepared: 64-byte aligned.
  void (*prepare)(const Dense& dense, void* prepared);
  // Outputs [begin, end).
  void (*run)(const Dense& dense, const void* prepared, int64_t begin, int64_t end);
};

const DenseKernel& dense_kernel(Isa isa, Element element);

}  // namespace qcompile
