// Rounding of activations to small floats, x' in the dtype of x, without torch. The formulas stand in qcompile/float_rounding.py.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "cpu/element.h"

namespace qcompile {

enum class FloatKind : int { nvfp4 = 0, mxfp4 = 1, mxfp8 = 2, fp8_token = 3, fp8_group = 4, fp8_tensor = 5 };
constexpr int64_t kFloatKinds = 6;

// Values of K that share a scale; 0 for all of them.
constexpr int64_t group_of(FloatKind kind) {
  switch (kind) {
    case FloatKind::nvfp4: return 16;
    case FloatKind::mxfp4:
    case FloatKind::mxfp8: return 32;
    case FloatKind::fp8_group: return 128;
    case FloatKind::fp8_token:
    case FloatKind::fp8_tensor: break;
  }
  return 0;
}

constexpr bool is_static(FloatKind kind) { return kind == FloatKind::nvfp4 || kind == FloatKind::fp8_tensor; }

struct FloatRounding {
  const void* x;  // [m, k] of `element`, k a multiple of the kind's group
  void* y;        // the same
  int64_t k;
  Element element;
  FloatKind kind;
  Element steps;  // every step of the arithmetic is rounded to it: f32, or that of x
  float scale;    // of a static kind
};

// Rows [begin, end).
using RoundRows = void (*)(const FloatRounding& rounding, int64_t begin, int64_t end);
RoundRows round_rows_of(Isa isa);

}  // namespace qcompile
