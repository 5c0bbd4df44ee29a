// 4-bit weights with pairs of bfloat16 (AVX512_BF16). A nibble ORed into the bit pattern 0x4300 is the bfloat16 number
// 128 + u exactly, so one load of 64 bytes gives four vectors of weight pairs with three shifts and four VPTERNLOGD;
// the 128 and the zero point leave with one multiple of the sum of x per group. float16 input is split exactly into two
// bfloat16 rows (high and low part) whose results are added.
// Instructions: https://www.intel.com/content/www/us/en/docs/intrinsics-guide (VDPBF16PS, VPTERNLOGD, VPERMW).
#include "cpu/int4.h"

#include <immintrin.h>

namespace qcompile {
namespace {

constexpr int64_t kMostRows = 12;   // of one panel: 12 accumulators, 12 totals and the decoded weights fill the registers
constexpr int64_t kAhead = 20 * 64;  // bytes of codes fetched ahead of use

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- rows and panels: rows are counted after the split of float16 ---------------------------------------------------

int64_t row_parts(Dtype dtype) { return dtype == Dtype::fp16 ? 2 : 1; }
int64_t panel_count(Dtype dtype, int64_t m) { return (m * row_parts(dtype) + kMostRows - 1) / kMostRows; }

// First row of x of a panel: panels differ by at most one row of x.
int64_t panel_start(Dtype dtype, int64_t m, int64_t panel) { return m * panel / panel_count(dtype, m); }

// A prepared panel of R rows: [groups][R] float sums, then [pairs of k][R] pairs.
int64_t row_bytes(const Int4Shape& shape) { return shape.padded_k() * 2 + shape.groups() * 4; }

int64_t max_rows(const Int4Shape& shape) {
  constexpr int64_t kMostBytes = 12 << 20;
  return smaller(768, larger(96, kMostBytes / (row_bytes(shape) + 1) / 12 * 12));
}

int64_t prepared_bytes(const Int4Shape& shape, Dtype dtype, int64_t m) { return row_bytes(shape) * m * row_parts(dtype); }

// ---- scales and output ----------------------------------------------------------------------------------------------

inline __m512 load_scales(const Int4Weight& weight, int64_t meta) {
  if (weight.shape.scale_kind == ScaleKind::f32) return _mm512_loadu_ps(weight.scales + meta * kBlock * 4);
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight.scales + meta * kBlock * 2));
  if (weight.shape.scale_kind == ScaleKind::fp16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// What one unit of the sum of x is worth: 128 + zero point.
inline __m512 load_offsets(const Int4Weight& weight, int64_t meta) {
  if (weight.zeros == nullptr) return _mm512_set1_ps(136.0f);
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight.zeros + meta * kBlock));
  return _mm512_add_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), _mm512_set1_ps(128.0f));
}

inline __mmask16 lanes_of(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

inline __m512 load_bias(const Int4Weight& weight, const Int4Output& output, int64_t column) {
  if (output.bias == nullptr) return _mm512_setzero_ps();
  return _mm512_maskz_loadu_ps(lanes_of(weight.shape.n - column), output.bias + column);
}

// ---- the product ----------------------------------------------------------------------------------------------------

inline __m512bh pair_of(const uint32_t* pair) {
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(*pair)));
}

inline __m512bh decode(__m512i line) {
  return reinterpret_cast<__m512bh>(
      _mm512_ternarylogic_epi32(line, _mm512_set1_epi32(0x000f000f), _mm512_set1_epi32(0x43004300), 0xea));
}

struct PanelArgs {
  const Int4Weight* weight;
  const uint8_t* panel;  // [groups][R] sums of x, then [pairs of k][R] pairs
  Int4Output output;     // from the first row of the panel on
  Dtype dtype;
  int64_t begin, end;    // blocks
};

inline void store_row(const PanelArgs& args, int64_t row, int64_t column, __m512 value) {
  const __mmask16 lanes = lanes_of(args.weight->shape.n - column);
  uint16_t* at = static_cast<uint16_t*>(args.output.y) + row * args.output.stride + column;
  const __m256i half = args.dtype == Dtype::fp16
                           ? _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                           : reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
  _mm256_mask_storeu_epi16(at, lanes, half);
}

template <int R>
void run_panel(const PanelArgs& args) {
  // VDPBF16PS takes some 6 cycles and one starts every cycle: few rows need several chains each.
  constexpr int kChains = R <= 2 ? 4 : R <= 5 ? 2 : 1;
  const Int4Weight& weight = *args.weight;
  const int64_t groups = weight.shape.groups(), group_lines = weight.shape.group_lines();
  const float* const sums = reinterpret_cast<const float*>(args.panel);
  const uint32_t* const pairs = reinterpret_cast<const uint32_t*>(args.panel + groups * R * 4);
  const uint8_t* line = weight.codes + args.begin * weight.shape.lines() * kLineBytes;
  for (int64_t block = args.begin; block < args.end; ++block) {
    __m512 total[R];
    for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
    const uint32_t* x = pairs;
    for (int64_t g = 0; g < groups; ++g) {
      __m512 sum[R][kChains];
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < kChains; ++c) sum[r][c] = _mm512_setzero_ps();
      for (int64_t l = 0; l < group_lines; ++l, line += kLineBytes, x += 4 * R) {
        const __m512i codes = _mm512_loadu_si512(line);
        _mm_prefetch(reinterpret_cast<const char*>(line + kAhead), _MM_HINT_T0);
        const __m512bh w[4] = {decode(codes), decode(_mm512_srli_epi32(codes, 4)), decode(_mm512_srli_epi32(codes, 8)),
                               decode(_mm512_srli_epi32(codes, 12))};
        for (int p = 0; p < 4; ++p)
          for (int r = 0; r < R; ++r)
            sum[r][p % kChains] = _mm512_dpbf16_ps(sum[r][p % kChains], w[p], pair_of(x + p * R + r));
      }
      const int64_t meta = block * groups + g;
      const __m512 scale = load_scales(weight, meta), offset = load_offsets(weight, meta);
      for (int r = 0; r < R; ++r) {
        __m512 all = sum[r][0];
        if constexpr (kChains == 2) all = _mm512_add_ps(sum[r][0], sum[r][1]);
        if constexpr (kChains == 4)
          all = _mm512_add_ps(_mm512_add_ps(sum[r][0], sum[r][1]), _mm512_add_ps(sum[r][2], sum[r][3]));
        all = _mm512_fnmadd_ps(offset, _mm512_set1_ps(sums[g * R + r]), all);
        total[r] = _mm512_fmadd_ps(all, scale, total[r]);
      }
    }
    const __m512 bias = load_bias(weight, args.output, block * kBlock);
    if (args.dtype == Dtype::fp16) {
      for (int r = 0; r + 1 < R; r += 2)
        store_row(args, r / 2, block * kBlock, _mm512_add_ps(_mm512_add_ps(total[r], total[r + 1]), bias));
    } else {
      for (int r = 0; r < R; ++r) store_row(args, r, block * kBlock, _mm512_add_ps(total[r], bias));
    }
  }
}

constexpr void (*kRunPanel[kMostRows])(const PanelArgs&) = {
    run_panel<1>, run_panel<2>, run_panel<3>, run_panel<4>,  run_panel<5>,  run_panel<6>,
    run_panel<7>, run_panel<8>, run_panel<9>, run_panel<10>, run_panel<11>, run_panel<12>};

void run(const Int4Weight& weight, const Int4Input& input, const void* prepared, const Int4Output& output, int64_t begin,
         int64_t end) {
  const int64_t panels = panel_count(input.dtype, input.m), parts = row_parts(input.dtype);
  // All panels of a block before the next block: its codes then come from memory once and from L2 afterwards.
  const int64_t step = panels == 1 ? end - begin : 1;
  for (int64_t block = begin; block < end; block += step) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t row = panel_start(input.dtype, input.m, panel);
      const int64_t rows = (panel_start(input.dtype, input.m, panel + 1) - row) * parts;
      PanelArgs args;
      args.weight = &weight;
      args.panel = static_cast<const uint8_t*>(prepared) + row * parts * row_bytes(weight.shape);
      args.output = output;
      args.output.y = static_cast<uint16_t*>(output.y) + row * output.stride;
      args.dtype = input.dtype;
      args.begin = block;
      args.end = block + step;
      kRunPanel[rows - 1](args);
    }
  }
}

// ---- preparing x ----------------------------------------------------------------------------------------------------

constexpr int64_t kPiece = 512;

// `count` values of one row of x from position k on as one or two parts of bfloat16, zero up to `padded`.
void stage(const Int4Input& input, int64_t row, int64_t k, int64_t count, int64_t padded, uint16_t parts[2][kPiece]) {
  const uint16_t* x = static_cast<const uint16_t*>(input.x) + row * input.stride;
  if (input.perm == nullptr) {
    __builtin_memcpy(parts[0], x + k, static_cast<size_t>(count) * 2);
  } else {
    for (int64_t i = 0; i < count; ++i) parts[0][i] = x[input.perm[k + i]];
  }
  for (int64_t i = count; i < padded; ++i) parts[0][i] = 0;
  if (input.dtype != Dtype::fp16) return;
  for (int64_t i = 0; i < padded; i += 16) {
    const __mmask16 lanes = lanes_of(padded - i);
    const __m512 value = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, parts[0] + i));
    // The high part is cut, not rounded: the rest then has at most 3 significant bits and the sign of the value.
    const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(value), 16);
    const __m512 low = _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
    _mm256_mask_storeu_epi16(parts[0] + i, lanes, _mm512_cvtepi32_epi16(high));
    _mm256_mask_storeu_epi16(parts[1] + i, lanes, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(low)));
  }
}

__m512 add_sums(__m512 sum, const uint16_t* values, int64_t count) {
  const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80));
  for (int64_t i = 0; i < count; i += 32) {
    const __mmask32 lanes = count - i >= 32 ? 0xffffffffu : (1u << (count - i)) - 1;
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(lanes, values + i)), ones);
  }
  return sum;
}

void prepare_panel(const Int4Weight& weight, const Int4Input& input, uint8_t* out, int64_t first, int64_t count) {
  const Int4Shape& shape = weight.shape;
  const int64_t parts = row_parts(input.dtype), rows = count * parts, groups = shape.groups();
  const int64_t group_k = shape.group_lines() * kLineK;
  float* const sums = reinterpret_cast<float*>(out);
  uint32_t* const pairs = reinterpret_cast<uint32_t*>(out + groups * rows * 4);
  alignas(64) uint16_t staged[2][kPiece];
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t group_end = smaller((g + 1) * shape.group, shape.k);
      __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (int64_t at = 0; at < group_k; at += kPiece) {
        const int64_t k = g * shape.group + at, padded = smaller(kPiece, group_k - at);
        const int64_t real = larger(0, smaller(padded, group_end - k));
        stage(input, first + row, k, real, padded, staged);
        for (int64_t part = 0; part < parts; ++part) {
          sum[part] = add_sums(sum[part], staged[part], padded);
          uint32_t* to = pairs + (g * group_k + at) / 2 * rows + row * parts + part;
          const uint32_t* from = reinterpret_cast<const uint32_t*>(staged[part]);
          for (int64_t i = 0; i < padded / 2; ++i, to += rows) *to = from[i];
        }
      }
      for (int64_t part = 0; part < parts; ++part) sums[g * rows + row * parts + part] = _mm512_reduce_add_ps(sum[part]);
    }
  }
}

void prepare(const Int4Weight& weight, const Int4Input& input, void* prepared, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel_start(input.dtype, input.m, panel);
    const int64_t count = panel_start(input.dtype, input.m, panel + 1) - first;
    uint8_t* out = static_cast<uint8_t*>(prepared) + first * row_parts(input.dtype) * row_bytes(weight.shape);
    prepare_panel(weight, input, out, first, count);
  }
}

}  // namespace

extern const Int4Kernel kInt4Avx512Bf16;
const Int4Kernel kInt4Avx512Bf16 = {"int4_avx512_bf16", max_rows, prepared_bytes, panel_count, prepare, run};

}  // namespace qcompile
