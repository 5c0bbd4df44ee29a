// Rounding to small floats with vectors of 8 floats.
#define QCOMPILE_WIDTH 8
#include "cpu/rounding_body.h"

namespace qcompile {

extern const RoundRows kRoundingAvx2;
const RoundRows kRoundingAvx2 = round_any;

}  // namespace qcompile
