// Runs the digest of every level of this machine over sizes around chunks and vectors of them and compares the levels. Meant to be
// built with -fsanitize=address,undefined. Prints the number of digests checked.
#include <algorithm>
#include <vector>

#include "cpu/digest.h"
#include "exact.h"

using namespace qcompile;

namespace {

void digest(const DigestKernel& kernel, const uint8_t* data, int64_t bytes, uint8_t* result) {
  const int64_t chunks = digest_chunks(bytes);
  if (chunks == 1) return digest_short(data, bytes, result);
  std::vector<uint32_t> values(static_cast<size_t>(chunks * kDigestWords));
  for (int64_t at = 0; at < chunks; at += kernel.lanes)
    digest_leaves(kernel, data, bytes, at, std::min(at + kernel.lanes, chunks), values.data());
  digest_tree(kernel, &values, result);
}

}  // namespace

int main() {
  long digests = 0;
  for (int64_t chunks = 0; chunks <= 67; ++chunks) {
    for (const int64_t more : {-1, 0, 1, 63, 64, 65}) {
      const int64_t bytes = chunks * kChunkBytes + more;
      if (bytes < 0) continue;
      const Bytes data = exactly(bytes);
      for (int64_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(numbers());
      const Bytes wanted = exactly(32), got = exactly(32);
      digest(digest_kernel(Isa::generic), data.get(), bytes, wanted.get());
      for (const Isa isa : available_isas()) {
        digest(digest_kernel(isa), data.get(), bytes, got.get());
        require(std::memcmp(got.get(), wanted.get(), 32) == 0, "the digest of the generic level");
        ++digests;
      }
    }
  }
  std::printf("%ld\n", digests);
  return 0;
}
