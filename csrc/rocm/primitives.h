// The few instructions of gfx1100 that the kernels need, under names that the host emulation defines as well, so that one
// source runs on the card (hipcc, clang) and on a CPU (g++ with tests/emulation/emulation.h).
// Reference for every instruction: AMD, "RDNA3 Instruction Set Architecture", sections 7 (VALU, WMMA) and 12 (LDS).
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(QCOMPILE_EMULATION)
#include "emulation.h"
#define QC_KERNEL_BODY 1
#else
#ifndef __global__
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#endif
#if defined(__gfx1100__)
#define QC_KERNEL_BODY 1
#else
#define QC_KERNEL_BODY 0  // other architectures, and the host half of a HIP compilation: the kernels are empty
#endif
#endif

namespace qcompile_rdna3 {

// vector_size, because ext_vector_type is unknown to g++. bf16 travels as its 16 bits.
typedef _Float16 half2_t __attribute__((vector_size(4)));
typedef _Float16 half16_t __attribute__((vector_size(32)));
typedef int16_t short2_t __attribute__((vector_size(4)));
typedef int16_t short16_t __attribute__((vector_size(32)));
typedef uint16_t bits4_t __attribute__((vector_size(8)));
typedef uint16_t bits8_t __attribute__((vector_size(16)));
typedef uint32_t words4_t __attribute__((vector_size(16)));
typedef uint32_t words8_t __attribute__((vector_size(32)));
typedef int32_t int4_t __attribute__((vector_size(16)));
typedef float float4_t __attribute__((vector_size(16)));
typedef float float8_t __attribute__((vector_size(32)));

// Loops over arrays that must live in registers: left to itself, a compiler may keep one rolled and its array in scratch.
#if defined(QCOMPILE_EMULATION)
#define QC_UNROLL
#else
#define QC_UNROLL _Pragma("unroll")
#endif

#define QC_INLINE __device__ inline __attribute__((always_inline))

template <class To, class From>
QC_INLINE To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
  return __builtin_bit_cast(To, value);
}

#if QC_KERNEL_BODY && !defined(QCOMPILE_EMULATION)

QC_INLINE int thread_index() { return __builtin_amdgcn_workitem_id_x(); }
QC_INLINE int block_x() { return __builtin_amdgcn_workgroup_id_x(); }
QC_INLINE int block_y() { return __builtin_amdgcn_workgroup_id_y(); }
QC_INLINE int block_z() { return __builtin_amdgcn_workgroup_id_z(); }

// A value that is the same in all lanes of a wave goes to a scalar register; branches on it leave the lane mask whole.
QC_INLINE int uniform(int value) { return __builtin_amdgcn_readfirstlane(value); }

// Orders LDS only. __syncthreads() would also wait for the global loads in flight, that is, for the prefetch.
QC_INLINE void lds_barrier() { asm volatile("s_waitcnt lgkmcnt(0)\n\ts_barrier" ::: "memory"); }

QC_INLINE float dot2(half2_t a, half2_t b, float c) { return __builtin_amdgcn_fdot2(a, b, c, false); }
QC_INLINE float dot2(short2_t a, short2_t b, float c) { return __builtin_amdgcn_fdot2_f32_bf16(a, b, c, false); }

// Wave32 16x16x16: lane l gives row (a) or column (b) l % 16, both halves of the wave alike; element i of the result is
// row 2 i + l / 16, column l % 16.
QC_INLINE float8_t wmma(half16_t a, half16_t b, float8_t c) { return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a, b, c); }
QC_INLINE float8_t wmma(short16_t a, short16_t b, float8_t c) { return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(a, b, c); }

// The compiler moves nothing across, and forgets what it has read from memory.
QC_INLINE void compiler_fence() {
  asm volatile("" ::: "memory");
  __builtin_amdgcn_sched_barrier(0);
}

// The value is computed here and not later: otherwise the compiler sinks all scalings to the end of a step, and keeps the
// unscaled sums of all tiles in registers until then.
template <class T>
QC_INLINE void pin(T& value) {
  asm volatile("" : "+v"(value));
}

// The value of lane (own lane xor Mask), for the masks that one vector instruction reaches; LDS is not involved. Pinned twice:
// RDNA3 emulators that move lane by lane need a result that does not share the operand's register.
template <int Mask>
QC_INLINE float shuffle_xor(float value) {
  static_assert(Mask == 1 || Mask == 2 || Mask == 8 || Mask == 16, "quad permutation, rotation of a row, exchange of rows");
  int moved;
  if constexpr (Mask == 16) {
    int low = 0x76543210, high = (int)0xFEDCBA98;
    asm("" : "+s"(low), "+s"(high));  // in scalar registers: some emulators lack literals here
    moved = (int)__builtin_amdgcn_permlanex16(0, bits<int>(value), low, high, false, false);
  } else {
    constexpr int kControl = Mask == 1 ? 0xB1 : Mask == 2 ? 0x4E : 0x128;  // quad_perm [1,0,3,2], [2,3,0,1], row_ror:8
    moved = __builtin_amdgcn_mov_dpp(bits<int>(value), kControl, 0xF, 0xF, true);
  }
  float out = bits<float>(moved);
  pin(out);
  pin(value);
  return out;
}

template <class T>
QC_INLINE T load(const void* address) {
  return *static_cast<const T*>(address);
}

template <class T>
QC_INLINE void store(void* address, T value) {
  *static_cast<T*>(address) = value;
}

#endif

}  // namespace qcompile_rdna3
