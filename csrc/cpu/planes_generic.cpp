// Level "generic" of codes at their own width: plain C++ in vectors of 4 floats.
#define QCOMPILE_WIDTH 4
#include "cpu/planes_body.h"
#include "cpu/planes_kernels.h"
#include "cpu/unpack_planes.h"

namespace qcompile {
namespace {

template <int kBits>
using Of = Panels<PlanesBody<kBits, 2>, PlanesWeight>;

template <int kBits>
constexpr PlanesKernel kMany = Strips<UnpackPlanes<kBits>, 3>::kernel("planes_many_generic");

}  // namespace

const PlanesKernels kGenericPlanes = {{{},
                                       Of<1>::kernel("planes1_generic", &kMany<1>, 24),
                                       Of<2>::kernel("planes2_generic", &kMany<2>, 24),
                                       Of<3>::kernel("planes3_generic", &kMany<3>, 24),
                                       Of<4>::kernel("planes4_generic", &kMany<4>, 24),
                                       Of<5>::kernel("planes5_generic", &kMany<5>, 24),
                                       Of<6>::kernel("planes6_generic", &kMany<6>, 24),
                                       Of<7>::kernel("planes7_generic", &kMany<7>, 24),
                                       Of<8>::kernel("planes8_generic", &kMany<8>, 24)}};

}  // namespace qcompile
