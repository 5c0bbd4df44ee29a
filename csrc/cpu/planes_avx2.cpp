// Level "avx2" of codes at their own width: vectors of 8 floats.
#define QCOMPILE_WIDTH 8
#include "cpu/planes_body.h"
#include "cpu/planes_kernels.h"
#include "cpu/unpack_planes.h"

namespace qcompile {
namespace {

template <int kBits>
constexpr PlanesKernel kMany = Strips<UnpackPlanes<kBits>, 6>::kernel("planes_many_avx2");

template <int kBits>
constexpr PlanesKernel of(const char* name) {
  return Panels<PlanesBody<kBits, 5>, PlanesWeight>::kernel(name, &kMany<kBits>, 24);
}

}  // namespace

const PlanesKernels kAvx2Planes = {{{},
                                       of<1>("planes1_avx2"),
                                       of<2>("planes2_avx2"),
                                       of<3>("planes3_avx2"),
                                       of<4>("planes4_avx2"),
                                       of<5>("planes5_avx2"),
                                       of<6>("planes6_avx2"),
                                       of<7>("planes7_avx2"),
                                       of<8>("planes8_avx2")}};

}  // namespace qcompile
