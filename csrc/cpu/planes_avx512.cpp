// Level "avx512" of codes at their own width: vectors of 16 floats.
#define QCOMPILE_WIDTH 16
#include "cpu/planes_body.h"
#include "cpu/planes_kernels.h"
#include "cpu/unpack_planes.h"

namespace qcompile {
namespace {

template <int kBits>
using Of = Panels<PlanesBody<kBits, 12>, PlanesWeight>;

template <int kBits>
constexpr PlanesKernel kMany = Strips<UnpackPlanes<kBits>, 12>::kernel("planes_many_avx512");

}  // namespace

const PlanesKernels kAvx512Planes = {{{},
                                       Of<1>::kernel("planes1_avx512", &kMany<1>, 48),
                                       Of<2>::kernel("planes2_avx512", &kMany<2>, 48),
                                       Of<3>::kernel("planes3_avx512", &kMany<3>, 48),
                                       Of<4>::kernel("planes4_avx512", &kMany<4>, 48),
                                       Of<5>::kernel("planes5_avx512", &kMany<5>, 48),
                                       Of<6>::kernel("planes6_avx512", &kMany<6>, 48),
                                       Of<7>::kernel("planes7_avx512", &kMany<7>, 48),
                                       Of<8>::kernel("planes8_avx512", &kMany<8>, 48)}};

}  // namespace qcompile
