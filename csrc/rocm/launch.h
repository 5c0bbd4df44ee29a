// The raw-pointer interface of gptq_gemm_rdna3, shared by the launcher, the torch boundary and the tests. Plain C types.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

// Shapes and meanings as in arguments.h. Every pointer is a device pointer, aligned to 16 bytes; perm may be null.
struct qcompile_rdna3_problem {
  const void* a;
  const void* qweight;
  const void* qzeros;
  const void* scales;
  const void* perm;
  void* out;
  void* workspace;  // at least qcompile_rdna3_workspace() bytes
  void* stream;     // hipStream_t
  int32_t m, n, k, group;
  int32_t zero_offset;  // 1: stored zero points are one less than meant (format v1), 0: as meant (v2)
  int32_t bf16;         // 0: fp16
  int32_t path;         // -1: by the model; else an index of the table in dispatch.h
  int32_t splits;       // 0: by the model; else the number of parts of K
};

// What will run for a problem; a plan for path = -1, splits = 0 comes from the model of dispatch.cpp.
struct qcompile_rdna3_plan {
  int32_t path, splits;
  int32_t grid_x, grid_y, grid_z, threads;
  int32_t gathers;  // 1: the activations are permuted by a kernel of their own first
  double microseconds;
};

// Null, or the reason (a static text) why the problem cannot be run. Needs no device; pointers are not looked at.
__attribute__((visibility("default"))) const char* qcompile_rdna3_make_plan(const struct qcompile_rdna3_problem*,
                                                                            struct qcompile_rdna3_plan*);

// Bytes of workspace for a problem that can be planned.
__attribute__((visibility("default"))) size_t qcompile_rdna3_workspace(const struct qcompile_rdna3_problem*);

// Name of path 0, 1, ..; null after the last one.
__attribute__((visibility("default"))) const char* qcompile_rdna3_path_name(int32_t path);

// Runs the problem on its stream. Null, or the reason (a static text) why not.
__attribute__((visibility("default"))) const char* qcompile_rdna3_launch(const struct qcompile_rdna3_problem*);

}  // extern "C"
