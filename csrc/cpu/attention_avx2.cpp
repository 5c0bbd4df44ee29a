// Attention with vectors of 8 floats.
#define QCOMPILE_WIDTH 8
#include "cpu/attention_float_body.h"

namespace qcompile {

extern const AttentionKernel kAttentionAvx2;
const AttentionKernel kAttentionAvx2 = {"avx2", AttentionRun<FloatBody>::scratch_bytes, AttentionRun<FloatBody>::run};

}  // namespace qcompile
