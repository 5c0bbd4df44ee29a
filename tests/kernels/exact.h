// Buffers of exactly the size that a kernel is told, every byte beyond them forbidden, and random numbers in them.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>

#include "common/half.h"

#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(from, bytes) ((void)(from), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(from, bytes) ((void)(from), (void)(bytes))
#endif

namespace qcompile {
namespace {

std::mt19937 numbers(7);

void require(bool met, const char* what) {
  if (met) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

// Memory that ends where a page begins that nobody may touch: AddressSanitizer does not see what intrinsics with a mask read and
// write, the processor does. What lies before it, or behind it because of its alignment, is poisoned (in steps of eight bytes).
class Bytes {
 public:
  Bytes() = default;
  explicit Bytes(size_t bytes, size_t alignment = 1) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), kept = (bytes + page - 1) / page * page;
    mapped_ = kept + page;
    map_ = static_cast<uint8_t*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    require(map_ != MAP_FAILED && mprotect(map_ + kept, page, PROT_NONE) == 0, "memory");
    const size_t before = (kept - bytes) / alignment * alignment;
    data_ = map_ + before;
    ASAN_POISON_MEMORY_REGION(map_, before);
    ASAN_POISON_MEMORY_REGION(data_ + bytes, kept - before - bytes);
  }
  ~Bytes() {
    if (map_ == nullptr) return;
    ASAN_UNPOISON_MEMORY_REGION(map_, mapped_);
    munmap(map_, mapped_);
  }
  Bytes(Bytes&& other) { *this = std::move(other); }
  Bytes& operator=(Bytes&& other) {
    std::swap(map_, other.map_);
    std::swap(mapped_, other.mapped_);
    std::swap(data_, other.data_);
    return *this;
  }

  uint8_t* get() const { return data_; }
  uint8_t& operator[](int64_t at) const { return data_[at]; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t *map_ = nullptr, *data_ = nullptr;
  size_t mapped_ = 0;
};

[[maybe_unused]] Bytes exactly(int64_t bytes) { return Bytes(static_cast<size_t>(bytes)); }

// Working memory of a kernel that is promised this alignment.
[[maybe_unused]] Bytes working(size_t bytes) { return Bytes(bytes, 64); }

// Kind: Dtype or Element, which name the same three formats of numbers.
template <class Kind>
int64_t bytes_of(Kind kind) {
  return kind == Kind::f32 ? 4 : 2;
}

template <class Kind>
float value_at(const void* data, Kind kind, int64_t at) {
  if (kind == Kind::f32) return static_cast<const float*>(data)[at];
  const uint16_t half = static_cast<const uint16_t*>(data)[at];
  return kind == Kind::bf16 ? bf16_to_float(half) : fp16_to_float(half);
}

template <class Kind>
void put(void* data, Kind kind, int64_t at, float value) {
  if (kind == Kind::f32)
    static_cast<float*>(data)[at] = value;
  else
    static_cast<uint16_t*>(data)[at] = kind == Kind::bf16 ? float_to_bf16(value) : float_to_fp16(value);
}

// Eighths of -1 to 1, which every format holds.
[[maybe_unused]] float some_value() { return static_cast<float>(static_cast<int>(numbers() % 17) - 8) / 8.0f; }

template <class Kind>
Bytes some_values(Kind kind, int64_t count) {
  Bytes made = exactly(count * bytes_of(kind));
  for (int64_t i = 0; i < count; ++i) put(made.get(), kind, i, some_value());
  return made;
}

}  // namespace
}  // namespace qcompile
