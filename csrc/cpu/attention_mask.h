// The value that a mask adds to one score.
#pragma once

#include "common/half.h"
#include "cpu/attention.h"

namespace qcompile {
namespace {

[[maybe_unused]] inline float mask_value(const Attention& attention, int64_t batch, int64_t head, int64_t query, int64_t key) {
  const Strided& mask = attention.mask;
  const int64_t at = batch * mask.batch + head * mask.head + query * mask.row + key * mask.column;
  switch (attention.mask_element) {
    case Element::f32: return static_cast<const float*>(mask.data)[at];
    case Element::bf16: return bf16_to_float(static_cast<const uint16_t*>(mask.data)[at]);
    case Element::fp16: return fp16_to_float(static_cast<const uint16_t*>(mask.data)[at]);
    case Element::boolean: break;
  }
  return static_cast<const bool*>(mask.data)[at] ? 0.0f : kMinusInfinity;
}

}  // namespace
}  // namespace qcompile
