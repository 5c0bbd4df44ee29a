// Level "generic" of codes at their own width: plain C++ in vectors of 4 floats.
#define QCOMPILE_WIDTH 4
#include "cpu/planes_body.h"
#include "cpu/planes_kernels.h"
#include "cpu/unpack_planes.h"

namespace qcompile {
namespace {

template <int kBits>
constexpr PlanesKernel kMany = Strips<UnpackPlanes<kBits>, 3>::kernel("planes_many_generic");

template <int kBits>
constexpr PlanesKernel of(const char* name) {
  return Panels<PlanesBody<kBits, 2>, PlanesWeight>::kernel(name, &kMany<kBits>, 24);
}

}  // namespace

const PlanesKernels kGenericPlanes = {{{},
                                       of<1>("planes1_generic"),
                                       of<2>("planes2_generic"),
                                       of<3>("planes3_generic"),
                                       of<4>("planes4_generic"),
                                       of<5>("planes5_generic"),
                                       of<6>("planes6_generic"),
                                       of<7>("planes7_generic"),
                                       of<8>("planes8_generic")}};

}  // namespace qcompile
