// The torch boundary of the digest: checks, memory and threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "common/checks.h"
#include "cpu/digest.h"

namespace qcompile {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// BLAKE3 of the bytes of a contiguous uint8 tensor, as uint8 [32].
Tensor native_digest(const Tensor bytes, int64_t level) {
  constexpr const char* kOp = "native_digest";
  check_cpu(kOp, "bytes", bytes);
  check_dtype(kOp, "bytes", bytes, {ScalarType::Byte});
  check_contiguous(kOp, "bytes", bytes);
  Tensor digest = torch::stable::new_empty(bytes, {32}, ScalarType::Byte);
  uint8_t* const out = static_cast<uint8_t*>(digest.mutable_data_ptr());
  const uint8_t* const data = static_cast<const uint8_t*>(bytes.const_data_ptr());
  const int64_t size = bytes.numel(), chunks = digest_chunks(size);
  if (chunks == 1) {
    digest_short(data, size, out);
    return digest;
  }
  const DigestKernel& kernel = digest_kernel(isa_of_index(level));
  std::vector<uint32_t> values(static_cast<size_t>(chunks * kDigestWords));
  // Whole vectors of chunks for every thread.
  torch::stable::parallel_for(0, (chunks + kernel.lanes - 1) / kernel.lanes, 4, [&](int64_t begin, int64_t end) {
    digest_leaves(kernel, data, size, begin * kernel.lanes, std::min(end * kernel.lanes, chunks), values.data());
  });
  digest_tree(kernel, &values, out);
  return digest;
}

}  // namespace
}  // namespace qcompile

STABLE_TORCH_LIBRARY_FRAGMENT(qcompile, m) { m.def("native_digest(Tensor bytes, *, int level=-1) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(qcompile, CPU, m) { m.impl("native_digest", TORCH_BOX(&qcompile::native_digest)); }
