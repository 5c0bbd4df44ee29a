// Kernels of tests/kernels/wide_strips.cpp.
#pragma once

#include "cpu/linear.h"
#include "cpu/planes_kernels.h"

namespace qcompile {

const LinearKernel& wide_kernel(Values values, int bits);
const PlanesKernel& wide_planes_kernel(int bits);

}  // namespace qcompile
