// 4-bit weights times float32 numbers: one body for every ISA, in vectors of QCOMPILE_WIDTH floats, for panels of at most
// QCOMPILE_ROWS rows. Included once by each file that is compiled for an ISA; everything has internal linkage, so that no
// code of one ISA can stand in for another's.
//
// A word of a line holds nibbles p = 0..7. (word & 15 << 4p) as an integer is u * 16^p, so the x of that k is multiplied by
// 16^-p beforehand (exact) and no shift is needed; only p = 7 would reach the sign bit and is shifted down.
// Sums are kept for at most 128 values of k before they are scaled and added to the total, which bounds the rounding error.
#include <cstring>

#include "common/half.h"
#include "cpu/int4.h"

namespace qcompile {
namespace {

constexpr int kWidth = QCOMPILE_WIDTH;
constexpr int kParts = kBlock / kWidth;  // vectors of one block
constexpr int64_t kMostRows = QCOMPILE_ROWS;
constexpr int64_t kRunLines = 16;        // lines summed before scaling
constexpr int64_t kAhead = 20 * 64;      // bytes of codes fetched ahead of use

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <class Vector>
inline Vector load(const void* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Floats all(float value) { return Floats{} + value; }

// Runs of lines that are summed before scaling: of one group, and their number in a group.
int64_t group_runs(const Int4Shape& shape) { return (shape.group_lines() + kRunLines - 1) / kRunLines; }

// A prepared panel of R rows: [groups][runs][R] float sums of x, then [padded k][R] scaled x.
int64_t row_bytes(const Int4Shape& shape) { return shape.padded_k() * 4 + shape.groups() * group_runs(shape) * 4; }
int64_t panel_count(Dtype, int64_t m) { return (m + kMostRows - 1) / kMostRows; }
int64_t panel_start(int64_t m, int64_t panel) { return m * panel / panel_count(Dtype::f32, m); }

int64_t max_rows(const Int4Shape& shape) {
  constexpr int64_t kMostBytes = 12 << 20;
  return smaller(768, larger(96, kMostBytes / (row_bytes(shape) + 1) / 12 * 12));
}

int64_t prepared_bytes(const Int4Shape& shape, Dtype, int64_t m) { return row_bytes(shape) * m; }

// ---- scales and output ----------------------------------------------------------------------------------------------

inline Floats load_scales(const Int4Weight& weight, int64_t at) {
  if (weight.shape.scale_kind == ScaleKind::f32) return load<Floats>(weight.scales + at * 4);
  uint16_t half[kWidth];
  std::memcpy(half, weight.scales + at * 2, sizeof half);
  Floats scales;
  if (weight.shape.scale_kind == ScaleKind::bf16) {
    Words bits;
    for (int i = 0; i < kWidth; ++i) bits[i] = static_cast<uint32_t>(half[i]) << 16;
    std::memcpy(&scales, &bits, sizeof scales);
  } else {
    for (int i = 0; i < kWidth; ++i) scales[i] = fp16_to_float(half[i]);
  }
  return scales;
}

inline Floats load_zeros(const Int4Weight& weight, int64_t at) {
  if (weight.zeros == nullptr) return all(8.0f);
  Ints zeros;
  for (int i = 0; i < kWidth; ++i) zeros[i] = weight.zeros[at + i];
  return __builtin_convertvector(zeros, Floats);
}

struct PanelArgs {
  const Int4Weight* weight;
  const uint8_t* panel;
  Int4Output output;  // from the first row of the panel on
  Dtype dtype;
  int64_t begin, end;  // blocks
};

void store_row(const PanelArgs& args, int64_t row, int64_t column, const float* values) {
  const int64_t count = smaller(kBlock, args.weight->shape.n - column), at = row * args.output.stride + column;
  const float* const bias = args.output.bias;
  for (int64_t i = 0; i < count; ++i) {
    const float value = bias == nullptr ? values[i] : values[i] + bias[column + i];
    if (args.dtype == Dtype::f32)
      static_cast<float*>(args.output.y)[at + i] = value;
    else
      static_cast<uint16_t*>(args.output.y)[at + i] = args.dtype == Dtype::bf16 ? float_to_bf16(value) : float_to_fp16(value);
  }
}

// ---- the product ----------------------------------------------------------------------------------------------------

template <int P>
inline Floats decode(Words word) {
  if constexpr (P == 7) return __builtin_convertvector(reinterpret_cast<Ints>(word >> 28), Floats);
  return __builtin_convertvector(reinterpret_cast<Ints>(word & (15u << (4 * (P & 7)))), Floats);
}

// In a line, k = 0..7 are nibbles 0 4 1 5 2 6 3 7.
constexpr int nibble_of(int k) { return k / 2 + (k % 2) * 4; }

template <int R, int K>
inline void add_products(const uint8_t* line, const float* x, Floats (&sum)[R][kParts]) {
  for (int part = 0; part < kParts; ++part) {
    const Floats w = decode<nibble_of(K)>(load<Words>(line + part * kWidth * 4));
    for (int r = 0; r < R; ++r) sum[r][part] += w * all(x[K * R + r]);
  }
}

template <int R>
void run_panel(const PanelArgs& args) {
  // Few rows leave the multipliers waiting for the sum before: even and odd k then have sums of their own.
  constexpr int kChains = R * kParts < 8 ? 2 : 1;
  const Int4Weight& weight = *args.weight;
  const int64_t groups = weight.shape.groups(), group_lines = weight.shape.group_lines(), runs = group_runs(weight.shape);
  const float* const sums = reinterpret_cast<const float*>(args.panel);
  const uint8_t* line = weight.codes + args.begin * weight.shape.lines() * kLineBytes;
  for (int64_t block = args.begin; block < args.end; ++block) {
    Floats total[R][kParts] = {};
    const float* x = sums + groups * runs * R;
    for (int64_t g = 0; g < groups; ++g) {
      Floats scale[kParts], zero[kParts];
      for (int part = 0; part < kParts; ++part) {
        const int64_t meta = (block * groups + g) * kBlock + part * kWidth;
        scale[part] = load_scales(weight, meta);
        zero[part] = load_zeros(weight, meta);
      }
      for (int64_t run = 0; run < runs; ++run) {
        Floats even[R][kParts] = {}, odd[kChains == 2 ? R : 1][kParts] = {};
        const int64_t count = smaller(kRunLines, group_lines - run * kRunLines);
        for (int64_t l = 0; l < count; ++l, line += kLineBytes, x += kLineK * R) {
          __builtin_prefetch(line + kAhead);
          add_products<R, 0>(line, x, even);
          add_products<R, 2>(line, x, even);
          add_products<R, 4>(line, x, even);
          add_products<R, 6>(line, x, even);
          if constexpr (kChains == 2) {
            add_products<R, 1>(line, x, odd);
            add_products<R, 3>(line, x, odd);
            add_products<R, 5>(line, x, odd);
            add_products<R, 7>(line, x, odd);
          } else {
            add_products<R, 1>(line, x, even);
            add_products<R, 3>(line, x, even);
            add_products<R, 5>(line, x, even);
            add_products<R, 7>(line, x, even);
          }
        }
        for (int r = 0; r < R; ++r) {
          const Floats sum_x = all(sums[(g * runs + run) * R + r]);
          for (int part = 0; part < kParts; ++part) {
            if constexpr (kChains == 2) even[r][part] += odd[r][part];
            total[r][part] += scale[part] * (even[r][part] - zero[part] * sum_x);
          }
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      float values[kBlock];
      std::memcpy(values, total[r], sizeof values);
      store_row(args, r, block * kBlock, values);
    }
  }
}

template <int... R>
struct PanelTable {
  void (*run[sizeof...(R)])(const PanelArgs&) = {run_panel<R + 1>...};
};
template <int... R>
constexpr PanelTable<R...> panel_table(std::integer_sequence<int, R...>) {
  return {};
}
constexpr auto kRunPanel = panel_table(std::make_integer_sequence<int, kMostRows>());

void run(const Int4Weight& weight, const Int4Input& input, const void* prepared, const Int4Output& output, int64_t begin,
         int64_t end) {
  const int64_t panels = panel_count(input.dtype, input.m), width = input.dtype == Dtype::f32 ? 4 : 2;
  // All panels of a block before the next block: its codes then come from memory once and from L2 afterwards.
  const int64_t step = panels == 1 ? end - begin : 1;
  for (int64_t block = begin; block < end; block += step) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t row = panel_start(input.m, panel), rows = panel_start(input.m, panel + 1) - row;
      PanelArgs args;
      args.weight = &weight;
      args.panel = static_cast<const uint8_t*>(prepared) + row * row_bytes(weight.shape);
      args.output = output;
      args.output.y = static_cast<uint8_t*>(output.y) + row * output.stride * width;
      args.dtype = input.dtype;
      args.begin = block;
      args.end = block + step;
      kRunPanel.run[rows - 1](args);
    }
  }
}

// ---- preparing x ----------------------------------------------------------------------------------------------------

inline float read_x(const Int4Input& input, int64_t row, int64_t k) {
  const int64_t at = row * input.stride + (input.perm == nullptr ? k : input.perm[k]);
  if (input.dtype == Dtype::f32) return static_cast<const float*>(input.x)[at];
  const uint16_t half = static_cast<const uint16_t*>(input.x)[at];
  return input.dtype == Dtype::bf16 ? bf16_to_float(half) : fp16_to_float(half);
}

void prepare(const Int4Weight& weight, const Int4Input& input, void* prepared, int64_t begin, int64_t end) {
  constexpr float kPlace[kLineK] = {1.0f,           1.0f / 65536,  1.0f / 16,    1.0f / 1048576,
                                    1.0f / 256, 1.0f / 16777216, 1.0f / 4096, 1.0f};
  const Int4Shape& shape = weight.shape;
  const int64_t groups = shape.groups(), group_lines = shape.group_lines(), runs = group_runs(shape);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel_start(input.m, panel), rows = panel_start(input.m, panel + 1) - first;
    float* const sums = reinterpret_cast<float*>(static_cast<uint8_t*>(prepared) + first * row_bytes(shape));
    float* const scaled = sums + groups * runs * rows;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t group_end = smaller((g + 1) * shape.group, shape.k);
        for (int64_t run = 0; run < runs; ++run) {
          float sum[kLineK] = {};
          const int64_t last = smaller((run + 1) * kRunLines, group_lines);
          for (int64_t l = run * kRunLines; l < last; ++l) {
            const int64_t k = g * shape.group + l * kLineK;
            float* const to = scaled + (g * group_lines + l) * kLineK * rows + row;
            for (int64_t i = 0; i < kLineK; ++i) {
              const float value = k + i < group_end ? read_x(input, first + row, k + i) : 0.0f;
              sum[i] += value;
              to[i * rows] = value * kPlace[i];
            }
          }
          sums[(g * runs + run) * rows + row] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
        }
      }
    }
  }
}

}  // namespace
}  // namespace qcompile
