// The table of paths and the model that chooses among them. Host code without HIP and without torch.
#pragma once

#include "launch.h"

namespace qcompile_rdna3 {

// One product kernel. `cycles`, `vgprs`: of the compiled inner loop (clang 19), fp16 and bf16; a test compares them with
// the code object. A step is 32 values of K for the columns that a wave owns.
struct Path {
  const char* name;
  bool decode;
  int rows, columns;  // of a block
  int threads, lds;
  int slices;  // parts of K within a block
  int wave_columns;
  int cycles[2];
  int vgprs[2];
};

extern const Path kPaths[];
extern const int kPathCount;

constexpr int kMaxSplits = 8;

}  // namespace qcompile_rdna3
