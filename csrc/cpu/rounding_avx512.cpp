// Rounding to small floats with vectors of 16 floats.
#define QCOMPILE_WIDTH 16
#include "cpu/rounding_body.h"

namespace qcompile {

extern const RoundRows kRoundingAvx512;
const RoundRows kRoundingAvx512 = round_any;

}  // namespace qcompile
