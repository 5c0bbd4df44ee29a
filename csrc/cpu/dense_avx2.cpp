// Dense products with vectors of 8 floats.
#define QCOMPILE_WIDTH 8
#include "cpu/dense_body.h"

namespace qcompile {

using Run = DenseRun<DenseFloatBody>;

extern const DenseKernel kDenseAvx2;
const DenseKernel kDenseAvx2 = {"avx2", Run::prepared_bytes, Run::prepare, Run::run};

}  // namespace qcompile
