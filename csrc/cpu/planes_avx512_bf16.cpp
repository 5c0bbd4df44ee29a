// Level "avx512_bf16" of codes at their own width: products of pairs of bfloat16. 8 bits do not fit beside the 128 of a bfloat16.
#define QCOMPILE_WIDTH 16
#include "cpu/planes_bf16_body.h"
#include "cpu/planes_kernels.h"

namespace qcompile {
namespace {

template <int kBits>
using Of = Panels<PlanesBf16Body<kBits>, PlanesWeight>;

}  // namespace

const PlanesKernels kAvx512Bf16Planes = {{{},
                                          Of<1>::kernel("planes1_avx512_bf16"),
                                          Of<2>::kernel("planes2_avx512_bf16"),
                                          Of<3>::kernel("planes3_avx512_bf16"),
                                          Of<4>::kernel("planes4_avx512_bf16"),
                                          Of<5>::kernel("planes5_avx512_bf16"),
                                          Of<6>::kernel("planes6_avx512_bf16"),
                                          Of<7>::kernel("planes7_avx512_bf16"),
                                          {}}};

}  // namespace qcompile
