// Rounding to small floats with vectors of 4 floats.
#define QCOMPILE_WIDTH 4
#include "cpu/rounding_body.h"

namespace qcompile {

extern const RoundRows kRoundingGeneric;
const RoundRows kRoundingGeneric = round_any;

}  // namespace qcompile
