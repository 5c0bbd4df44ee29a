// Level "avx2_vnni" where the processor has AVX-VNNI: products of bytes in 256-bit vectors, by VPDPBUSD with the VEX prefix.
#define QCOMPILE_VNNI_KERNELS kAvx2VnniKernels
#include "cpu/avx2_vnni_body.h"
