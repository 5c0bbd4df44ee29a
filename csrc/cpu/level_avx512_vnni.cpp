// AVX-512 with VNNI, used by levels "avx512" and "avx512_bf16" where the processor has it: products of bytes.
#define QCOMPILE_WIDTH 16
#define QCOMPILE_VNNI 1
#include "cpu/int4_a8_body.h"
#include "cpu/int8_body.h"
#include "cpu/probe_dots.h"

namespace qcompile {
namespace {

constexpr int64_t kRows = 16;
constexpr LinearKernel kInt8 = Panels<Int8Body<ByteDot, kRows>>::kernel("int8_avx512_vnni");
constexpr LinearKernel kInt4A8 = Panels<Int4A8Body<NibbleDot, kRows>>::kernel("int4_a8_avx512_vnni");

}  // namespace

const LevelKernels kAvx512VnniKernels = {nullptr, nullptr, &kInt8, &kInt4A8, nullptr, nullptr, nullptr, nullptr, probe_bytes, nullptr};

}  // namespace qcompile
