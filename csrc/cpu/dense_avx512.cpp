// Dense products with vectors of 16 floats.
#define QCOMPILE_WIDTH 16
#include "cpu/dense_body.h"

namespace qcompile {

using Run = DenseRun<DenseFloatBody>;

extern const DenseKernel kDenseAvx512;
const DenseKernel kDenseAvx512 = {"avx512", Run::prepared_bytes, Run::prepare, Run::run};

}  // namespace qcompile
