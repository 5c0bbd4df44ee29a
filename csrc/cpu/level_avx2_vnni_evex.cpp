// Level "avx2_vnni" on processors that have the same 256-bit instruction with the EVEX prefix only (AVX-512 VNNI with VL): nobody
// needs it there, but it lets the body of AVX-VNNI be tested. Same source; what differs is the encoding, and that the compiler
// may use 32 registers.
#define QCOMPILE_VNNI_EVEX 1
#define QCOMPILE_VNNI_KERNELS kAvx2VnniEvexKernels
#include "cpu/avx2_vnni_body.h"
