// The table of 4-bit implementations: which one a level uses for a dtype.
#include "cpu/int4.h"

namespace qcompile {

extern const Int4Kernel kInt4Generic;
#if defined(__x86_64__)
extern const Int4Kernel kInt4Avx2, kInt4Avx512, kInt4Avx512Bf16;
#endif

const Int4Kernel& int4_kernel(Isa isa, Dtype dtype) {
#if defined(__x86_64__)
  // float32 input would lose bits in pairs of bfloat16: it keeps to float32 products.
  if (isa == Isa::avx512_bf16 && dtype != Dtype::f32) return kInt4Avx512Bf16;
  if (isa >= Isa::avx512) return kInt4Avx512;
  if (isa == Isa::avx2) return kInt4Avx2;
#else
  (void)isa;
  (void)dtype;
#endif
  return kInt4Generic;
}

}  // namespace qcompile
