// 4-bit weights times float32 numbers, level "avx512": 32 registers of 16 floats: 12 sums and 12 totals of a panel fit.
#define QCOMPILE_WIDTH 16
#define QCOMPILE_ROWS 12
#include <utility>

#include "cpu/int4_float_body.h"

namespace qcompile {

extern const Int4Kernel kInt4Avx512;
const Int4Kernel kInt4Avx512 = {"int4_avx512", max_rows, prepared_bytes, panel_count, prepare, run};

}  // namespace qcompile
