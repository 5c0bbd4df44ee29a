// 8-bit products of level "avx2_vnni": 16 registers of 8 sums. 2 x 6 sums of 8-bit weights fit beside a decoded vector, a number of
// x and a constant; 4-bit weights decode to two vectors and leave room for 2 x 5. Everything else comes from level "avx2".
#define QCOMPILE_WIDTH 8
#define QCOMPILE_VNNI 1
#include "cpu/int4_a8_body.h"
#include "cpu/int8_body.h"
#include "cpu/probe_dots.h"

namespace qcompile {
namespace {

constexpr LinearKernel kInt8 = Panels<Int8Body<ByteDot, 6>>::kernel("int8_avx2_vnni");
constexpr LinearKernel kInt4A8 = Panels<Int4A8Body<NibbleDot, 5>>::kernel("int4_a8_avx2_vnni");

}  // namespace

const LevelKernels QCOMPILE_VNNI_KERNELS = {nullptr, nullptr, &kInt8, &kInt4A8, nullptr, nullptr, nullptr, nullptr, probe_bytes, nullptr};

}  // namespace qcompile
