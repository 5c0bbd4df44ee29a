// Attention with vectors of 4 floats.
#define QCOMPILE_WIDTH 4
#include "cpu/attention_float_body.h"

namespace qcompile {

extern const AttentionKernel kAttentionGeneric;
const AttentionKernel kAttentionGeneric = {"generic", AttentionRun<FloatBody>::scratch_bytes, AttentionRun<FloatBody>::run};

}  // namespace qcompile
