// The loops for many rows with vectors of 16 floats, two blocks side by side, as AVX-512 has them: here of what every processor has.
#define QCOMPILE_WIDTH 16
#include "wide_strips.h"

#include "cpu/unpack_lines.h"
#include "cpu/unpack_planes.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 12;
constexpr LinearKernel kInt4 = Strips<UnpackLines<4>, kRows>::kernel("int4_wide");
constexpr LinearKernel kInt8 = Strips<UnpackLines<8>, kRows>::kernel("int8_a16_wide");
constexpr LinearKernel kBook4 = Strips<UnpackLines<4, Values::book>, kRows>::kernel("book4_wide");
constexpr LinearKernel kE4m3 = Strips<UnpackLines<8, Values::e4m3>, kRows>::kernel("e4m3_wide");
constexpr LinearKernel kE5m2 = Strips<UnpackLines<8, Values::e5m2>, kRows>::kernel("e5m2_wide");

template <int kBits>
constexpr PlanesKernel kPlanes = Strips<UnpackPlanes<kBits>, kRows>::kernel("planes_wide");

}  // namespace

const LinearKernel& wide_kernel(Values values, int bits) {
  if (values == Values::book) return kBook4;
  if (values == Values::e4m3) return kE4m3;
  if (values == Values::e5m2) return kE5m2;
  return bits == 4 ? kInt4 : kInt8;
}

const PlanesKernel& wide_planes_kernel(int bits) {
  constexpr const PlanesKernel* kAll[] = {&kPlanes<1>, &kPlanes<2>, &kPlanes<3>, &kPlanes<4>, &kPlanes<5>, &kPlanes<6>, &kPlanes<7>, &kPlanes<8>};
  return *kAll[bits - 1];
}

}  // namespace qcompile
