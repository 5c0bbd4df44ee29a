// Level "generic" of codes at their own width: plain C++ in vectors of 4 floats.
#define QCOMPILE_WIDTH 4
#include "cpu/planes_body.h"
#include "cpu/planes_kernels.h"

namespace qcompile {
namespace {

template <int kBits>
using Of = Panels<PlanesBody<kBits, 2>, PlanesWeight>;

}  // namespace

const PlanesKernels kGenericPlanes = {{{},
                                       Of<1>::kernel("planes1_generic"),
                                       Of<2>::kernel("planes2_generic"),
                                       Of<3>::kernel("planes3_generic"),
                                       Of<4>::kernel("planes4_generic"),
                                       Of<5>::kernel("planes5_generic"),
                                       Of<6>::kernel("planes6_generic"),
                                       Of<7>::kernel("planes7_generic"),
                                       Of<8>::kernel("planes8_generic")}};

}  // namespace qcompile
