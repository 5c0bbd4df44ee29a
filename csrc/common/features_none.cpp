// A processor whose instruction sets have no levels of their own: it runs the generic one.
#include "common/isa.h"

namespace qcompile {

CpuFeatures detect_features() { return {}; }

}  // namespace qcompile
