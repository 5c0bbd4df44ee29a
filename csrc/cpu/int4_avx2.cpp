// 4-bit weights times float32 numbers, level "avx2": 16 registers of 8 floats: 2 x 5 sums, two decoded vectors and a number of x fit, totals live in memory.
#define QCOMPILE_WIDTH 8
#define QCOMPILE_ROWS 5
#include <utility>

#include "cpu/int4_float_body.h"

namespace qcompile {

extern const Int4Kernel kInt4Avx2;
const Int4Kernel kInt4Avx2 = {"int4_avx2", max_rows, prepared_bytes, panel_count, prepare, run};

}  // namespace qcompile
