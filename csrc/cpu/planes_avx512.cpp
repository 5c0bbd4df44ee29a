// Level "avx512" of codes at their own width: vectors of 16 floats.
#define QCOMPILE_WIDTH 16
#include "cpu/planes_body.h"
#include "cpu/planes_kernels.h"
#include "cpu/unpack_planes.h"

namespace qcompile {
namespace {

template <int kBits>
constexpr PlanesKernel kMany = Strips<UnpackPlanes<kBits>, 12>::kernel("planes_many_avx512");

template <int kBits>
constexpr PlanesKernel of(const char* name) {
  return Panels<PlanesBody<kBits, 12>, PlanesWeight>::kernel(name, &kMany<kBits>, 48);
}

}  // namespace

const PlanesKernels kAvx512Planes = {{{},
                                       of<1>("planes1_avx512"),
                                       of<2>("planes2_avx512"),
                                       of<3>("planes3_avx512"),
                                       of<4>("planes4_avx512"),
                                       of<5>("planes5_avx512"),
                                       of<6>("planes6_avx512"),
                                       of<7>("planes7_avx512"),
                                       of<8>("planes8_avx512")}};

}  // namespace qcompile
