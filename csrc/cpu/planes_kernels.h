// The table of implementations for codes at their own width (cpu/planes.h).
#pragma once

#include "cpu/linear.h"
#include "cpu/planes.h"

namespace qcompile {

using PlanesKernel = LinearKernelOf<PlanesWeight>;

// What one source file compiled for an ISA provides: a kernel for each number of bits, 1 to 8; `name` is null where it has none.
struct PlanesKernels {
  PlanesKernel of[9];
};
extern const PlanesKernels kGenericPlanes, kAvx2Planes, kAvx512Planes, kAvx512Bf16Planes;

// The implementation that a level uses for a number of bits and a dtype of x.
const PlanesKernel& planes_kernel(int bits, Isa isa, Dtype dtype);

}  // namespace qcompile
