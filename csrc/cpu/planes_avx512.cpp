// Level "avx512" of codes at their own width: vectors of 16 floats.
#define QCOMPILE_WIDTH 16
#include "cpu/planes_body.h"
#include "cpu/planes_kernels.h"

namespace qcompile {
namespace {

template <int kBits>
using Of = Panels<PlanesBody<kBits, 12>, PlanesWeight>;

}  // namespace

const PlanesKernels kAvx512Planes = {{{},
                                       Of<1>::kernel("planes1_avx512"),
                                       Of<2>::kernel("planes2_avx512"),
                                       Of<3>::kernel("planes3_avx512"),
                                       Of<4>::kernel("planes4_avx512"),
                                       Of<5>::kernel("planes5_avx512"),
                                       Of<6>::kernel("planes6_avx512"),
                                       Of<7>::kernel("planes7_avx512"),
                                       Of<8>::kernel("planes8_avx512")}};

}  // namespace qcompile
