// The arguments of the two product kernels, in the order in which they are passed (docs/rdna3.md gives the offsets).
#pragma once

#include <stdint.h>

namespace qcompile_rdna3 {

struct Arguments {
  const uint16_t* a;        // [M, K] activations, fp16 or bf16 bits
  const uint32_t* qweight;  // [K / 8, N] eight nibbles along K, shuffled: q[2 i] at bit 4 i, q[2 i + 1] at bit 16 + 4 i
  const uint32_t* qzeros;   // [G, N / 8] eight nibbles along N, lowest first
  const uint16_t* scales;   // [G, N] in the dtype of a
  const int32_t* perm;      // [K] or null: packed row r is column perm[r] of a
  uint16_t* out;            // [M, N] in the dtype of a; written when splits == 1
  float* partial;           // [splits, M, N]; written when splits > 1
  int m, n, k;
  int group;        // a multiple of 32 that divides k
  int zero_offset;  // effective zero point = stored + zero_offset (1 for format v1, 0 for v2)
  int splits;       // K is cut in this many parts, one per block_z
};

}  // namespace qcompile_rdna3
