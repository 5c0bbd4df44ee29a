// Which implementation of dense products a level uses.
#include "cpu/dense.h"

namespace qcompile {

extern const DenseKernel kDenseGeneric;
#if defined(__x86_64__)
extern const DenseKernel kDenseAvx2, kDenseAvx512, kDenseAvx512Bf16;
#endif

const DenseKernel& dense_kernel(Isa isa, Element element) {
#if defined(__x86_64__)
  if (isa == Isa::avx512_bf16 && element == Element::bf16) return kDenseAvx512Bf16;
  if (isa >= Isa::avx512) return kDenseAvx512;
  if (isa >= Isa::avx2) return kDenseAvx2;
#else
  (void)isa;
  (void)element;
#endif
  return kDenseGeneric;
}

}  // namespace qcompile
