// Dense products with vectors of 4 floats.
#define QCOMPILE_WIDTH 4
#include "cpu/dense_body.h"

namespace qcompile {

using Run = DenseRun<DenseFloatBody>;

extern const DenseKernel kDenseGeneric;
const DenseKernel kDenseGeneric = {"generic", Run::prepared_bytes, Run::prepare, Run::run};

}  // namespace qcompile
