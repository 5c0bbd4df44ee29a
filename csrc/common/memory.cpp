#include "common/memory.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace qcompile {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

struct Buffer {
  void* memory = nullptr;
  size_t bytes = 0;
  ~Buffer() { std::free(memory); }
};

}  // namespace

void* thread_scratch(size_t bytes) {
  thread_local Buffer buffer;
  if (bytes > buffer.bytes || buffer.memory == nullptr) {
    std::free(buffer.memory);
    buffer.bytes = 0;
    // Whole huge pages once it is large, so that growing is rare and the pages can be huge.
    const size_t step = bytes >= kHugePage ? kHugePage : 4096;
    const size_t rounded = (bytes + step) / step * step;
    buffer.memory = std::aligned_alloc(step, rounded);
    if (buffer.memory == nullptr) throw std::bad_alloc();
    prefer_huge_pages(buffer.memory, rounded);
    buffer.bytes = rounded;
  }
  return buffer.memory;
}

void prefer_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) / kHugePage * kHugePage;
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

}  // namespace qcompile
