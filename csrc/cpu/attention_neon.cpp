// Attention with the vectors of 4 floats of 64-bit Arm.
#define QCOMPILE_WIDTH 4
#include "cpu/attention_float_body.h"

namespace qcompile {

extern const AttentionKernel kAttentionNeon;
const AttentionKernel kAttentionNeon = {"neon", AttentionRun<FloatBody>::scratch_bytes, AttentionRun<FloatBody>::run};

}  // namespace qcompile
