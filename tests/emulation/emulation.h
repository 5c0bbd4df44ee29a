// Runs a kernel source of csrc/rocm on the CPU, unchanged: one ucontext fiber per thread of a block, blocks one after another.
//
// Barriers and wave operations (WMMA, shuffles, uniform values) are meeting points. What the card would answer with garbage
// or a hang ends the process here, with a sentence: a barrier that not every thread reaches, a wave operation that not every
// lane of the wave reaches, different operations met in one wave, WMMA operands that differ between the halves of a wave, a
// value declared uniform that is not, a misaligned access. Written for g++ 12 (_Float16, vector_size).
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmath>
#include <functional>

#define __global__
#define __device__
#define __shared__ static

namespace qcompile_emulation {

// Runs grid x * y * z blocks of `threads` threads; `body` is the kernel call.
void run(int x, int y, int z, int threads, const std::function<void()>& body);

const char* architecture();

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

struct Place {
  int thread, block_x, block_y, block_z;
};
Place& here();

void barrier();

// Meets the 31 other lanes of the wave at the operation `name`. Each lane brings `operand`; the last one to arrive runs
// `combine(operands of lanes 0 .. 31)`, which writes the results through the pointers it finds there.
void meet(const char* name, void* operand, void (*combine)(void* const operands[32]));

template <class Vector>
struct WmmaOperand {
  Vector a, b;
  float c[8];
};

inline float product(_Float16 a, _Float16 b) { return (float)a * (float)b; }
inline float widen(int16_t a) {
  const uint32_t word = (uint32_t)(uint16_t)a << 16;
  return __builtin_bit_cast(float, word);
}
inline float widen(_Float16 a) { return (float)a; }

template <class Vector>
void combine_wmma(void* const operands[32]) {
  using Operand = WmmaOperand<Vector>;
  float a[16][16], b[16][16];
  for (int lane = 0; lane < 16; ++lane) {
    Operand* low = static_cast<Operand*>(operands[lane]);
    Operand* high = static_cast<Operand*>(operands[lane + 16]);
    if (memcmp(&low->a, &high->a, sizeof(Vector)) != 0) fail("WMMA: rows of lanes %d and %d differ", lane, lane + 16);
    if (memcmp(&low->b, &high->b, sizeof(Vector)) != 0) fail("WMMA: columns of lanes %d and %d differ", lane, lane + 16);
    for (int k = 0; k < 16; ++k) {
      a[lane][k] = widen(low->a[k]);
      b[lane][k] = widen(low->b[k]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    Operand* own = static_cast<Operand*>(operands[lane]);
    for (int i = 0; i < 8; ++i) {
      float sum = own->c[i];
      for (int k = 0; k < 16; ++k) sum += a[2 * i + lane / 16][k] * b[lane % 16][k];
      own->c[i] = sum;
    }
  }
}

struct ShuffleOperand {
  float value;
  int mask;
  float result;
};
void combine_shuffle(void* const operands[32]);
void combine_uniform(void* const operands[32]);

template <class T>
void check_alignment(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) {
    fail("misaligned access: %zu bytes at %p, thread %d", sizeof(T), address, here().thread);
  }
}

}  // namespace qcompile_emulation

// The names that csrc/rocm/primitives.h gives to instructions of the card.
namespace qcompile_rdna3 {

inline int thread_index() { return qcompile_emulation::here().thread; }
inline int block_x() { return qcompile_emulation::here().block_x; }
inline int block_y() { return qcompile_emulation::here().block_y; }
inline int block_z() { return qcompile_emulation::here().block_z; }

inline int uniform(int value) {
  qcompile_emulation::meet("uniform", &value, qcompile_emulation::combine_uniform);
  return value;
}

inline void lds_barrier() { qcompile_emulation::barrier(); }

template <class Pair>
float dot2(Pair a, Pair b, float c) {
  static_assert(sizeof(Pair) == 4, "two values of 16 bits");
  using qcompile_emulation::widen;
  c = std::fma(widen(a[0]), widen(b[0]), c);
  return std::fma(widen(a[1]), widen(b[1]), c);
}

template <class Fragment, class Sums>
Sums wmma(Fragment a, Fragment b, Sums c) {
  static_assert(sizeof(Fragment) == 32 && sizeof(Sums) == 32, "16 values of 16 bits, 8 sums");
  qcompile_emulation::WmmaOperand<Fragment> operand;
  operand.a = a;
  operand.b = b;
  memcpy(operand.c, &c, sizeof(c));
  qcompile_emulation::meet("wmma", &operand, qcompile_emulation::combine_wmma<Fragment>);
  memcpy(&c, operand.c, sizeof(c));
  return c;
}

template <int Mask>
float shuffle_xor(float value) {
  static_assert(Mask > 0 && Mask < 32, "within a wave");
  qcompile_emulation::ShuffleOperand operand = {value, Mask, 0.0f};
  qcompile_emulation::meet("shuffle", &operand, qcompile_emulation::combine_shuffle);
  return operand.result;
}

inline void compiler_fence() {}

template <class T>
void pin(T&) {}

template <class T>
T load(const void* address) {
  qcompile_emulation::check_alignment<T>(address);
  return *static_cast<const T*>(address);
}

template <class T>
void store(void* address, T value) {
  qcompile_emulation::check_alignment<T>(address);
  *static_cast<T*>(address) = value;
}

}  // namespace qcompile_rdna3
