// The torch boundary of attention: checks, division of the work, threads, and the hand-over of many query rows to PyTorch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>

#include "common/checks.h"
#include "common/memory.h"
#include "cpu/attention.h"
#include "cpu/binding_element.h"

namespace qcompile {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

constexpr const char* kOp = "native_attention";
constexpr int64_t kFewQueries = 64;      // with more, PyTorch's kernel is faster where it has AMX, or ours no vectors
constexpr int64_t kPieceQueries = 16;    // computed together: their sums stay in the second cache
constexpr int64_t kLeastKeys = 128;      // of one part, when the keys of a head are divided among threads
constexpr int64_t kLeastBytes = 32768;   // of K and V, that a thread is worth waking for

// How many query rows our kernel takes. PyTorch's multiplies in tiles where the processor has them (CPUID leaf 7, EDX bit 22:
// AMX-BF16, Intel SDM volume 2); without, ours is 1 to 4 times as fast, because it reads no key that a mask hides.
int64_t most_queries(Isa isa) {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  static const bool has_tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 22 & 1) != 0;
  return has_tiles || isa == Isa::generic || isa >= Isa::neon ? kFewQueries : std::numeric_limits<int64_t>::max();
#else
  (void)isa;
  return kFewQueries;
#endif
}

int64_t native_attention_most_queries(int64_t level) { return most_queries(isa_of_index(level)); }

void check_operand(const char* name, const Tensor& tensor, ScalarType type) {
  check_cpu(kOp, name, tensor);
  check_dtype(kOp, name, tensor, {type});
  if (tensor.dim() != 4) fail(kOp, name, "expected shape [batch, heads, rows, width], got ", shape_text(tensor));
}

Strided strided(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

Tensor with_unit_columns(const Tensor& tensor) {
  return tensor.stride(3) == 1 || tensor.size(3) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

// The mask seen as [batch, heads, queries, keys]: missing dimensions and sizes of 1 have stride 0.
Strided broadcast_mask(const Tensor& mask, const Attention& attention) {
  const std::array<int64_t, 4> sizes = {attention.batch, attention.heads, attention.queries, attention.keys};
  std::array<int64_t, 4> strides = {0, 0, 0, 0};
  bool fits = mask.dim() <= 4;
  for (int64_t d = 0; fits && d < mask.dim(); ++d) {
    const size_t at = static_cast<size_t>(4 - mask.dim() + d);
    fits = mask.size(d) == sizes[at] || mask.size(d) == 1;
    strides[at] = mask.size(d) == 1 ? 0 : mask.stride(d);
  }
  if (!fits)
    fail(kOp, "mask", "expected a shape that broadcasts to [", sizes[0], ", ", sizes[1], ", ", sizes[2], ", ", sizes[3], "], got ",
         shape_text(mask));
  return {mask.const_data_ptr(), strides[0], strides[1], strides[2], strides[3]};
}

void check(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& mask) {
  check_cpu(kOp, "q", q);
  check_dtype(kOp, "q", q, {ScalarType::BFloat16, ScalarType::Half, ScalarType::Float});
  check_operand("q", q, q.scalar_type());
  check_operand("k", k, q.scalar_type());
  check_operand("v", v, q.scalar_type());
  if (k.size(0) != q.size(0) || k.size(3) != q.size(3))
    fail(kOp, "k", "expected [", q.size(0), ", K/V heads, keys, ", q.size(3), "] as q has it, got ", shape_text(k));
  if (k.size(1) < 1 ? q.size(1) > 0 : q.size(1) % k.size(1) != 0)
    fail(kOp, "k", "expected a number of heads that divides the ", q.size(1), " of q, got ", k.size(1));
  check_shape(kOp, "v", v, {k.size(0), k.size(1), k.size(2), k.size(3)});
  if (!mask.has_value()) return;
  check_cpu(kOp, "mask", *mask);
  check_dtype(kOp, "mask", *mask, {ScalarType::Bool, ScalarType::BFloat16, ScalarType::Half, ScalarType::Float});
}

// All of one call with few queries.
void run(const Attention& attention, const AttentionKernel& kernel) {
  const int64_t heads = attention.batch * attention.kv_heads;
  std::unique_ptr<Visible[]> visible(new Visible[static_cast<size_t>(attention.batch)]);
  int64_t longest = 0;
  for (int64_t b = 0; b < attention.batch; ++b) {
    visible[b] = visible_keys(attention, b);
    longest = std::max(longest, visible[b].last - visible[b].first);
  }
  const int64_t threads = torch::stable::get_num_threads();
  // Heads alone keep the threads busy when each gets the same number, or many.
  int64_t parts = 1;
  if (threads > 1 && heads < 4 * threads && heads % threads != 0)
    parts = std::clamp(longest / kLeastKeys, int64_t{1}, (2 * threads + heads - 1) / heads);
  const int64_t partial_floats = attention.rows() * (attention.width + 2);
  std::unique_ptr<float[]> partial(parts > 1 ? new float[static_cast<size_t>(heads * parts * partial_floats)] : nullptr);
  const size_t scratch = kernel.scratch_bytes(attention);
  const int64_t bytes = 2 * (longest + parts - 1) / parts * attention.width * (attention.element == Element::f32 ? 4 : 2);
  const int64_t grain = std::max<int64_t>(1, kLeastBytes / std::max<int64_t>(1, bytes));
  torch::stable::parallel_for(0, heads * parts, grain, [&](int64_t begin, int64_t end) {
    void* const memory = thread_scratch(scratch);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / parts, b = head / attention.kv_heads, index = item % parts;
      const Visible& keys = visible[b];
      const int64_t each = ((keys.last - keys.first + parts - 1) / parts + kTile - 1) / kTile * kTile;
      AttentionPart part;
      part.batch = b;
      part.kv_head = head % attention.kv_heads;
      part.first = std::min(keys.last, keys.first + index * each);
      part.last = std::min(keys.last, part.first + each);
      part.unseen = keys.unseen;
      part.partial = parts > 1 ? partial.get() + item * partial_floats : nullptr;
      kernel.run(attention, part, memory);
    }
  });
  if (parts == 1) return;
  for (int64_t head = 0; head < heads; ++head)
    join_parts(attention, head / attention.kv_heads, head % attention.kv_heads, partial.get() + head * parts * partial_floats, parts,
               partial_floats);
}

Attention piece_of(const Attention& attention, int64_t first, int64_t width, int64_t mask_width) {
  Attention piece = attention;
  piece.queries = std::min(kPieceQueries, attention.queries - first);
  piece.first_query = first;
  piece.q.data = static_cast<const uint8_t*>(attention.q.data) + first * attention.q.row * width;
  piece.out.data = static_cast<const uint8_t*>(attention.out.data) + first * attention.out.row * width;
  if (attention.mask.data != nullptr)
    piece.mask.data = static_cast<const uint8_t*>(attention.mask.data) + first * attention.mask.row * mask_width;
  return piece;
}

// All of one call with several pieces: each piece of each K/V head is one thread's.
void run_pieces(const Attention& attention, const AttentionKernel& kernel, int64_t width, int64_t mask_width) {
  const int64_t pieces = (attention.queries + kPieceQueries - 1) / kPieceQueries, heads = attention.batch * attention.kv_heads;
  torch::stable::parallel_for(0, heads * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      // First, last, second, last but one: the first pieces of a causal mask see few keys, and every thread gets of both kinds.
      const int64_t head = item / pieces, turn = item % pieces, index = turn % 2 == 0 ? turn / 2 : pieces - 1 - turn / 2;
      const Attention piece = piece_of(attention, index * kPieceQueries, width, mask_width);
      AttentionPart part;
      part.batch = head / attention.kv_heads;
      part.kv_head = head % attention.kv_heads;
      const Visible keys = visible_keys(piece, part.batch);
      part.first = keys.first;
      part.last = keys.last;
      part.unseen = keys.unseen;
      part.partial = nullptr;
      kernel.run(piece, part, thread_scratch(kernel.scratch_bytes(piece)));
    }
  });
}

Tensor torch_attention(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& mask, double scale, bool causal) {
  using torch::stable::detail::from;
  std::array<StableIValue, 7> stack = {from(q), from(k), from(v), from(0.0), from(causal), from(mask), from(std::optional<double>(scale))};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::_scaled_dot_product_flash_attention_for_cpu", "", stack.data(), TORCH_ABI_VERSION));
  Tensor output = torch::stable::detail::to<Tensor>(stack[0]);
  (void)torch::stable::detail::to<Tensor>(stack[1]);  // logsumexp: taken over so that it is freed
  return output;
}

// What PyTorch's kernel takes; it gives zeros for queries that see nothing.
bool torch_takes(const Tensor& q, const Tensor& k, const MaybeTensor& mask, bool nan_if_unseen) {
  if (nan_if_unseen || q.numel() == 0 || k.numel() == 0) return false;
  return !mask.has_value() ||
         (mask->scalar_type() != ScalarType::Bool && (mask->dim() == 2 || mask->dim() == 4) &&
          (mask->scalar_type() == q.scalar_type() || mask->scalar_type() == ScalarType::Float));
}

Tensor native_attention(const Tensor q, const Tensor k, const Tensor v, const MaybeTensor mask, double scale, bool causal,
                        bool nan_if_unseen, int64_t level) {
  check(q, k, v, mask);
  if (!std::isfinite(scale)) fail(kOp, "scale", "expected a finite number, got ", scale);
  const Tensor q_in = with_unit_columns(q), k_in = with_unit_columns(k), v_in = with_unit_columns(v);
  Attention attention;
  attention.batch = q.size(0);
  attention.heads = q.size(1);
  attention.queries = q.size(2);
  attention.kv_heads = std::max<int64_t>(1, k.size(1));
  attention.keys = k.size(2);
  attention.width = q.size(3);
  attention.mask = mask.has_value() ? broadcast_mask(*mask, attention) : Strided{};
  const Element mask_element = mask.has_value() ? element_of(mask->scalar_type()) : Element::f32;
  if (level == -1 && attention.queries > most_queries(isa_of_index(level)) && torch_takes(q, k, mask, nan_if_unseen)) {
    Tensor output = torch_attention(q_in, k_in, v_in, mask, scale, causal);
    bool same = true;
    const Tensor wanted = torch::stable::empty_like(q);
    for (int64_t d = 0; d < 4; ++d) same = same && (q.size(d) == 1 || output.stride(d) == wanted.stride(d));
    return same ? output : torch::stable::copy_(const_cast<Tensor&>(wanted), output);
  }
  Tensor out = torch::stable::empty_like(q);
  if (out.numel() == 0) return out;
  attention.element = element_of(q.scalar_type());
  attention.q = strided(q_in);
  attention.k = strided(k_in);
  attention.v = strided(v_in);
  Tensor compact = with_unit_columns(out);
  attention.out = strided(compact);
  attention.mask_element = mask_element;
  attention.scale = static_cast<float>(scale);
  attention.causal = causal;
  attention.nan_if_unseen = nan_if_unseen;
  attention.first_query = 0;
  const AttentionKernel& kernel = attention_kernel(isa_of_index(level), attention.element);
  const int64_t width = static_cast<int64_t>(q.element_size()), mask_width = mask.has_value() ? static_cast<int64_t>(mask->element_size()) : 0;
  if (attention.queries > kPieceQueries)
    run_pieces(attention, kernel, width, mask_width);
  else
    run(attention, kernel);
  return out.stride(3) == 1 || out.size(3) <= 1 ? out : torch::stable::copy_(out, compact);
}

}  // namespace
}  // namespace qcompile

STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) {
  m.def(
      "native_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, bool is_causal, *, bool nan_if_unseen=False, "
      "int level=-1) -> Tensor");
  m.def("native_attention_most_queries(int level=-1) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(qcompile, CPU, m) { m.impl("native_attention", TORCH_BOX(&qcompile::native_attention)); }

STABLE_TORCH_LIBRARY_IMPL(qcompile, CompositeExplicitAutograd, m) {
  m.impl("native_attention_most_queries", TORCH_BOX(&qcompile::native_attention_most_queries));
}
