// Attention with vectors of 16 floats.
#define QCOMPILE_WIDTH 16
#include "cpu/attention_float_body.h"

namespace qcompile {

extern const AttentionKernel kAttentionAvx512;
const AttentionKernel kAttentionAvx512 = {"avx512", AttentionRun<FloatBody>::scratch_bytes, AttentionRun<FloatBody>::run};

}  // namespace qcompile
