// 4-bit weights times float32 numbers, level "generic": vectors of 4 floats, which SSE2 and NEON both have, and the compiler emulates elsewhere.
#define QCOMPILE_WIDTH 4
#define QCOMPILE_ROWS 2
#include <utility>

#include "cpu/int4_float_body.h"

namespace qcompile {

extern const Int4Kernel kInt4Generic;
const Int4Kernel kInt4Generic = {"int4_generic", max_rows, prepared_bytes, panel_count, prepare, run};

}  // namespace qcompile
