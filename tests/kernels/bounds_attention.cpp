// Runs every kernel for attention of every level of this machine over edge shapes, strides and masks and compares with plain sums.
// Meant to be built with -fsanitize=address,undefined. Prints the number of calls checked.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/attention.h"
#include "exact.h"

using namespace qcompile;

namespace {

// batch, heads, K/V heads, queries, keys, width: around tiles of 16 keys, blocks of 64, registers of 4 to 32 values.
constexpr int64_t kShapes[][6] = {{1, 1, 1, 1, 1, 1},   {1, 2, 2, 3, 15, 7},  {2, 4, 1, 2, 17, 33}, {1, 3, 3, 16, 64, 8},
                                  {1, 8, 2, 5, 65, 40}, {1, 2, 1, 1, 130, 64}, {2, 2, 2, 4, 63, 96}, {1, 6, 2, 3, 33, 129}};

enum class Mask { none, flags, of_batch, of_head, turned, tail };

// A tensor whose last element is the last of its memory.
struct View {
  Strided at;
  Bytes bytes;
};

struct Sizes {
  int64_t batch, heads, rows, columns;
};

int64_t elements(const Sizes& sizes, const Strided& at) {
  return 1 + (sizes.batch - 1) * at.batch + (sizes.heads - 1) * at.head + (sizes.rows - 1) * at.row + (sizes.columns - 1) * at.column;
}

View view(Element element, const Sizes& sizes, Strided at) {
  View made = {at, some_values(element, elements(sizes, at))};
  made.at.data = made.bytes.get();
  return made;
}

// Rows of all heads side by side, as a projection leaves them.
Strided turned(const Sizes& sizes) { return {nullptr, sizes.rows * sizes.heads * sizes.columns, sizes.columns, sizes.heads * sizes.columns, 1}; }

// The beginning of a longer cache.
Strided cached(const Sizes& sizes) {
  const int64_t head = (sizes.rows + 3) * sizes.columns;
  return {nullptr, head * sizes.heads, head, sizes.columns, 1};
}

View mask_of(Mask kind, const Attention& a, Element* element) {
  const Sizes sizes = {a.batch, a.heads, a.queries, a.keys};
  *element = kind == Mask::flags || kind == Mask::turned ? Element::boolean : kind == Mask::of_batch ? Element::f32 : a.element;
  Strided at = {nullptr, 0, 0, a.keys, 1};
  if (kind == Mask::none) return {{}, Bytes()};
  if (kind == Mask::of_batch) at = {nullptr, a.keys, 0, 0, 1};
  if (kind == Mask::of_head) at.head = a.queries * a.keys;
  if (kind == Mask::turned) at = {nullptr, 0, 0, 1, a.queries};
  const int64_t count = elements(sizes, at);
  View made = {at, exactly(count * element_bytes(*element))};
  made.at.data = made.bytes.get();
  for (int64_t i = 0; i < count; ++i) {
    const bool seen = kind == Mask::tail ? i % a.keys <= a.keys / 2 : numbers() % 4 != 0;
    if (*element == Element::boolean)
      made.bytes[i] = seen;
    else
      put(made.bytes.get(), *element, i, seen ? some_value() : kMinusInfinity);
  }
  return made;
}

double mask_value(const Attention& a, int64_t batch, int64_t head, int64_t query, int64_t key) {
  if (a.causal && key > a.first_query + query) return kMinusInfinity;
  if (a.mask.data == nullptr) return 0.0;
  const int64_t at = batch * a.mask.batch + head * a.mask.head + query * a.mask.row + key * a.mask.column;
  if (a.mask_element == Element::boolean) return static_cast<const uint8_t*>(a.mask.data)[at] != 0 ? 0.0 : kMinusInfinity;
  return value_at(a.mask.data, a.mask_element, at);
}

float at(const Strided& tensor, Element element, int64_t batch, int64_t head, int64_t row, int64_t column) {
  return value_at(tensor.data, element, batch * tensor.batch + head * tensor.head + row * tensor.row + column);
}

void run(const Attention& a, const AttentionKernel& kernel, int64_t parts) {
  const int64_t floats = a.rows() * (a.width + 2);
  const Bytes memory = exactly(parts * floats * 4);
  float* const partial = memory.as<float>();
  for (int64_t batch = 0; batch < a.batch; ++batch) {
    const Visible keys = visible_keys(a, batch);
    const int64_t each = ((keys.last - keys.first + parts - 1) / parts + kTile - 1) / kTile * kTile;
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      for (int64_t index = 0; index < parts; ++index) {
        const int64_t first = std::min(keys.last, keys.first + index * each), last = std::min(keys.last, first + each);
        const AttentionPart part = {batch, head, first, last, keys.unseen, parts > 1 ? partial + index * floats : nullptr};
        const Bytes scratch = working(kernel.scratch_bytes(a));
        kernel.run(a, part, scratch.get());
      }
      if (parts > 1) join_parts(a, batch, head, partial, parts, floats);
    }
  }
}

// The weights of the keys for one query; all NaN where it sees none and that is what is asked for.
std::vector<double> softmax(const Attention& a, int64_t batch, int64_t head, int64_t query) {
  std::vector<double> weights(static_cast<size_t>(a.keys));
  double most = kMinusInfinity, total = 0;
  for (int64_t key = 0; key < a.keys; ++key) {
    double score = 0;
    for (int64_t d = 0; d < a.width; ++d)
      score += static_cast<double>(at(a.q, a.element, batch, head, query, d)) * at(a.k, a.element, batch, head / a.group(), key, d);
    weights[key] = score * a.scale + mask_value(a, batch, head, query, key);
    most = std::max(most, weights[key]);
  }
  const bool unseen = most == kMinusInfinity;
  for (double& weight : weights) total += weight = unseen ? 0.0 : std::exp(weight - most);
  for (double& weight : weights) weight = unseen ? (a.nan_if_unseen ? std::nan("") : 0.0) : weight / total;
  return weights;
}

void compare(const Attention& a, const char* name) {
  double error = 0, size = 1e-9;
  for (int64_t batch = 0; batch < a.batch; ++batch) {
    for (int64_t head = 0; head < a.heads; ++head) {
      for (int64_t query = 0; query < a.queries; ++query) {
        const std::vector<double> weights = softmax(a, batch, head, query);
        for (int64_t d = 0; d < a.width; ++d) {
          double sum = 0, terms = 0;
          for (int64_t key = 0; key < a.keys; ++key) {
            const double term = weights[key] * at(a.v, a.element, batch, head / a.group(), key, d);
            sum += term;
            terms += term * term;
          }
          const double got = at(a.out, a.element, batch, head, query, d);
          require(std::isnan(got) == std::isnan(sum), "NaN where no key is seen");
          if (std::isnan(sum)) continue;
          error += (got - sum) * (got - sum);
          size += sum * sum + terms;
        }
      }
    }
  }
  const double most = a.element == Element::f32 ? 2e-6 : a.element == Element::fp16 ? 6e-4 : 6e-3;
  if (std::sqrt(error / size) > most)
    std::fprintf(stderr, "%s keys=%ld width=%ld queries=%ld: %g\n", name, a.keys, a.width, a.queries, std::sqrt(error / size));
  require(std::sqrt(error / size) <= most, "close to the plain sum");
}

long check(const int64_t (&of)[6], Element element, Mask kind, bool causal) {
  long calls = 0;
  Attention a = {};
  a.batch = of[0], a.heads = of[1], a.kv_heads = of[2], a.queries = of[3], a.keys = of[4], a.width = of[5];
  a.element = element;
  a.scale = 1.0f / std::sqrt(static_cast<float>(a.width));
  a.causal = causal;
  a.first_query = causal ? static_cast<int64_t>(numbers() % 20) : 0;
  a.nan_if_unseen = numbers() % 2 == 0;
  const Sizes queries = {a.batch, a.heads, a.queries, a.width}, keys = {a.batch, a.kv_heads, a.keys, a.width};
  const View q = view(element, queries, turned(queries)), k = view(element, keys, cached(keys)), v = view(element, keys, turned(keys));
  const View mask = mask_of(kind, a, &a.mask_element);
  a.q = q.at, a.k = k.at, a.v = v.at, a.mask = mask.at;
  for (const Isa isa : available_isas()) {
    for (const int64_t parts : {1, 3}) {
      const View out = view(element, queries, turned(queries));
      a.out = out.at;
      const AttentionKernel& kernel = attention_kernel(isa, element);
      run(a, kernel, parts);
      compare(a, kernel.name);
      ++calls;
    }
  }
  return calls;
}

}  // namespace

int main() {
  long calls = 0;
  for (const auto& of : kShapes)
    for (const Element element : {Element::bf16, Element::fp16, Element::f32})
      for (const Mask kind : {Mask::none, Mask::flags, Mask::of_batch, Mask::of_head, Mask::turned, Mask::tail})
        for (const bool causal : {false, true}) calls += check(of, element, kind, causal);
  std::printf("%ld\n", calls);
  return 0;
}
