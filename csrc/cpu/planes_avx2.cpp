// Level "avx2" of codes at their own width: vectors of 8 floats.
#define QCOMPILE_WIDTH 8
#include "cpu/planes_body.h"
#include "cpu/planes_kernels.h"
#include "cpu/unpack_planes.h"

namespace qcompile {
namespace {

template <int kBits>
using Of = Panels<PlanesBody<kBits, 5>, PlanesWeight>;

template <int kBits>
constexpr PlanesKernel kMany = Strips<UnpackPlanes<kBits>, 6>::kernel("planes_many_avx2");

}  // namespace

const PlanesKernels kAvx2Planes = {{{},
                                       Of<1>::kernel("planes1_avx2", &kMany<1>, 24),
                                       Of<2>::kernel("planes2_avx2", &kMany<2>, 24),
                                       Of<3>::kernel("planes3_avx2", &kMany<3>, 24),
                                       Of<4>::kernel("planes4_avx2", &kMany<4>, 24),
                                       Of<5>::kernel("planes5_avx2", &kMany<5>, 24),
                                       Of<6>::kernel("planes6_avx2", &kMany<6>, 24),
                                       Of<7>::kernel("planes7_avx2", &kMany<7>, 24),
                                       Of<8>::kernel("planes8_avx2", &kMany<8>, 24)}};

}  // namespace qcompile
