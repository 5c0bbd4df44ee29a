// What all bodies share: rows of x are cut into panels, a body multiplies one panel with some blocks of the weight, and the
// loops around that are here.
//
// A Body is a struct with
//   kMostRows                    rows of a panel, at most (counted after `parts`)
//   parts(dtype)                 rows that one row of x becomes
//   row_bytes(shape)             prepared bytes of one such row
//   prepare_panel(weight, input, out, first, count)   rows [first, first + count) of x
//   run_panel<R>(args)           R rows times blocks [begin, end)
#pragma once

#include <utility>

#include "cpu/linear.h"
#include "cpu/width.h"

namespace qcompile {
namespace {

// How codes are fetched ahead of use; where each body changes from one to the other was measured (bench/gemm.py).
//   alone  not at all: so little is done with a line that the processor has enough of them under way by itself
//   once   into the first cache
//   twice  early into the second cache, as memory may take a few hundred nanoseconds, and late from there into the first, which
//          has few buffers for misses: a line takes so long that without it only few would be under way
enum class Fetch { alone, once, twice };

template <Fetch kFetch>
inline void fetch_ahead(const uint8_t* line) {
  if constexpr (kFetch == Fetch::once) __builtin_prefetch(line + 48 * kLineBytes, 0, 3);
  if constexpr (kFetch == Fetch::twice) {
    __builtin_prefetch(line + 128 * kLineBytes, 0, 2);
    __builtin_prefetch(line + 12 * kLineBytes, 0, 3);
  }
}

[[maybe_unused]] inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <class Weight>
struct PanelArgsOf {
  const Weight* weight;
  const uint8_t* panel;
  LinearOutput output;  // from the first row of the panel on
  Dtype dtype;
  int64_t begin, end;   // blocks
};
using PanelArgs = PanelArgsOf<PackedWeight>;

template <class Body, class Weight = PackedWeight>
struct Panels {
  using Shape = decltype(Weight::shape);
  using Args = PanelArgsOf<Weight>;

  static int64_t count(Dtype dtype, int64_t m) { return (m * Body::parts(dtype) + Body::kMostRows - 1) / Body::kMostRows; }

  // First row of x of a panel: panels differ by at most one row of x.
  static int64_t start(Dtype dtype, int64_t m, int64_t panel) { return m * panel / count(dtype, m); }

  static int64_t max_rows(const Shape& shape) {
    constexpr int64_t kMostBytes = 12 << 20;
    return smaller(768, larger(96, kMostBytes / (Body::row_bytes(shape) + 1) / 12 * 12));
  }

  static int64_t prepared_bytes(const Shape& shape, Dtype dtype, int64_t m) {
    return Body::row_bytes(shape) * m * Body::parts(dtype);
  }

  static void prepare(const Weight& weight, const LinearInput& input, void* prepared, int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = start(input.dtype, input.m, panel);
      uint8_t* const out = static_cast<uint8_t*>(prepared) + first * Body::parts(input.dtype) * Body::row_bytes(weight.shape);
      Body::prepare_panel(weight, input, out, first, start(input.dtype, input.m, panel + 1) - first);
    }
  }

  template <int... R>
  static void run_rows(int64_t rows, const Args& args, std::integer_sequence<int, R...>) {
    constexpr void (*kRun[])(const Args&) = {Body::template run_panel<R + 1>...};
    kRun[rows - 1](args);
  }

  static void run(const Weight& weight, const LinearInput& input, const void* prepared, const LinearOutput& output,
                  int64_t begin, int64_t end) {
    const int64_t panels = count(input.dtype, input.m), parts = Body::parts(input.dtype);
    const int64_t width = input.dtype == Dtype::f32 ? 4 : 2;
    const int64_t step = panels == 1 ? end - begin : blocks_at_once(weight.shape);
    for (int64_t block = begin; block < end; block += step) {
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t row = start(input.dtype, input.m, panel);
        Args args;
        args.weight = &weight;
        args.panel = static_cast<const uint8_t*>(prepared) + row * parts * Body::row_bytes(weight.shape);
        args.output = output;
        args.output.y = static_cast<uint8_t*>(output.y) + row * output.stride * width;
        args.dtype = input.dtype;
        args.begin = block;
        args.end = smaller(block + step, end);
        run_rows((start(input.dtype, input.m, panel + 1) - row) * parts, args,
                 std::make_integer_sequence<int, static_cast<int>(Body::kMostRows)>());
      }
    }
  }

  static constexpr LinearKernelOf<Weight> kernel(const char* name, const LinearKernelOf<Weight>* many = nullptr, int64_t many_rows = 0) {
    return {name, max_rows, prepared_bytes, count, prepare, run, many, many_rows};
  }
};

}  // namespace
}  // namespace qcompile
