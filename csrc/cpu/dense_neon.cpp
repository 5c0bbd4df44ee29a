// Dense products with the vectors of 4 floats of 64-bit Arm.
#define QCOMPILE_WIDTH 4
#include "cpu/dense_body.h"

namespace qcompile {

using Run = DenseRun<DenseFloatBody>;

extern const DenseKernel kDenseNeon;
const DenseKernel kDenseNeon = {"neon", Run::prepared_bytes, Run::prepare, Run::run};

}  // namespace qcompile
