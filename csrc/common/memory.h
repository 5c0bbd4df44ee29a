// Working memory of an operator and huge pages for weights.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qcompile {

// At least `bytes` bytes, 64-byte aligned, owned by the calling thread until its next call or its end. Kept between calls:
// fresh memory costs a page fault for every 4 KiB.
void* thread_scratch(size_t bytes);

// Asks for 2 MiB pages for the whole pages inside; to be called before the memory is written. Where the system has none or
// says no, nothing happens.
void prefer_huge_pages(void* memory, size_t bytes);

}  // namespace qcompile
