// Every kernel of gptq_gemm_rdna3 under a plain C name (raw pointers and ints only, no implicit arguments), and the launcher.
//
// The device code needs neither torch nor the HIP headers:
//   clang -x hip --offload-arch=gfx1100 --cuda-device-only -nogpulib -nogpuinc -O3 -DQCOMPILE_DEVICE_ONLY ...
// For other architectures the kernels are empty; the launcher refuses those before it launches anything.
#if !defined(QCOMPILE_DEVICE_ONLY) && !defined(QCOMPILE_EMULATION)
#include <hip/hip_runtime.h>
#endif

#include "decode.h"
#include "gather_reduce.h"
#include "prefill.h"

namespace qcompile_rdna3 {

using Tile16x64 = Tile<1, 1, 1, 8>;
using Tile32x64 = Tile<2, 1, 1, 8>;
using Tile64x128 = Tile<4, 1, 2, 2>;
using Tile128x128 = Tile<4, 2, 2, 1>;

}  // namespace qcompile_rdna3

#if QC_KERNEL_BODY
#define QC_BODY(...) __VA_ARGS__
#else
#define QC_BODY(...)
#pragma clang diagnostic ignored "-Wunused-parameter"
#endif

#if defined(QCOMPILE_EMULATION)
#define QC_THREADS(count)
#else
#define QC_THREADS(count) __attribute__((amdgpu_flat_work_group_size(count, count)))
#endif

#define QC_PARAMETERS                                                                                              \
  const uint16_t *a, const uint32_t *qweight, const uint32_t *qzeros, const uint16_t *scales, const int32_t *perm, \
      uint16_t *out, float *partial, int m, int n, int k, int group, int zero_offset, int splits
#define QC_ARGUMENTS {a, qweight, qzeros, scales, perm, out, partial, m, n, k, group, zero_offset, splits}

#define QC_DECODE(name, format, rows)                                                   \
  extern "C" __global__ QC_THREADS(256) void name(QC_PARAMETERS) {                      \
    QC_BODY(alignas(16) __shared__ uint16_t lds[qcompile_rdna3::kDecodeLds / 2];        \
            const qcompile_rdna3::Arguments arguments = QC_ARGUMENTS;                   \
            qcompile_rdna3::Decode<qcompile_rdna3::format, rows>::run(arguments, lds);) \
  }

#define QC_PREFILL(name, format, tile)                                                                                         \
  extern "C" __global__ QC_THREADS(qcompile_rdna3::tile::kThreads) void name(QC_PARAMETERS) {                                  \
    QC_BODY(                                                                                                                   \
        alignas(16) __shared__ char lds[qcompile_rdna3::tile::kLds]; const qcompile_rdna3::Arguments arguments = QC_ARGUMENTS; \
        const qcompile_rdna3::Prefill<qcompile_rdna3::format, qcompile_rdna3::tile> product(arguments, lds); product.run();)   \
  }

QC_DECODE(qcompile_rdna3_decode_f16_m1, Half, 1)
QC_DECODE(qcompile_rdna3_decode_f16_m2, Half, 2)
QC_DECODE(qcompile_rdna3_decode_f16_m4, Half, 4)
QC_DECODE(qcompile_rdna3_decode_f16_m8, Half, 8)
QC_DECODE(qcompile_rdna3_decode_bf16_m1, Brain, 1)
QC_DECODE(qcompile_rdna3_decode_bf16_m2, Brain, 2)
QC_DECODE(qcompile_rdna3_decode_bf16_m4, Brain, 4)
QC_DECODE(qcompile_rdna3_decode_bf16_m8, Brain, 8)
QC_PREFILL(qcompile_rdna3_prefill_f16_16x64, Half, Tile16x64)
QC_PREFILL(qcompile_rdna3_prefill_f16_32x64, Half, Tile32x64)
QC_PREFILL(qcompile_rdna3_prefill_f16_64x128, Half, Tile64x128)
QC_PREFILL(qcompile_rdna3_prefill_f16_128x128, Half, Tile128x128)
QC_PREFILL(qcompile_rdna3_prefill_bf16_16x64, Brain, Tile16x64)
QC_PREFILL(qcompile_rdna3_prefill_bf16_32x64, Brain, Tile32x64)
QC_PREFILL(qcompile_rdna3_prefill_bf16_64x128, Brain, Tile64x128)
QC_PREFILL(qcompile_rdna3_prefill_bf16_128x128, Brain, Tile128x128)

extern "C" __global__ QC_THREADS(256) void qcompile_rdna3_gather(const uint16_t* a, const int32_t* perm, uint16_t* gathered,
                                                                 int m, int k) {
  QC_BODY(qcompile_rdna3::gather_columns(a, perm, gathered, m, k);)
}

extern "C" __global__ QC_THREADS(256) void qcompile_rdna3_reduce_f16(const float* partial, uint16_t* out, int count,
                                                                     int splits) {
  QC_BODY(qcompile_rdna3::sum_parts<qcompile_rdna3::Half>(partial, out, count, splits);)
}

extern "C" __global__ QC_THREADS(256) void qcompile_rdna3_reduce_bf16(const float* partial, uint16_t* out, int count,
                                                                      int splits) {
  QC_BODY(qcompile_rdna3::sum_parts<qcompile_rdna3::Brain>(partial, out, count, splits);)
}

#if !defined(QCOMPILE_DEVICE_ONLY) && !defined(__HIP_DEVICE_COMPILE__)

#include <cstring>

#include "dispatch.h"

#if defined(QCOMPILE_EMULATION)
#define QC_LAUNCH(kernel, x, y, z, threads, stream, ...) \
  (qcompile_emulation::run(x, y, z, threads, [=] { kernel(__VA_ARGS__); }), static_cast<void>(stream))
#else
#define QC_LAUNCH(kernel, x, y, z, threads, stream, ...) \
  kernel<<<dim3(x, y, z), dim3(threads), 0, static_cast<hipStream_t>(stream)>>>(__VA_ARGS__)
#endif

namespace {

using qcompile_rdna3_kernel = void (*)(QC_PARAMETERS);

// In the order of kPaths.
const qcompile_rdna3_kernel kKernels[2][8] = {
    {qcompile_rdna3_decode_f16_m1, qcompile_rdna3_decode_f16_m2, qcompile_rdna3_decode_f16_m4, qcompile_rdna3_decode_f16_m8,
     qcompile_rdna3_prefill_f16_16x64, qcompile_rdna3_prefill_f16_32x64, qcompile_rdna3_prefill_f16_64x128,
     qcompile_rdna3_prefill_f16_128x128},
    {qcompile_rdna3_decode_bf16_m1, qcompile_rdna3_decode_bf16_m2, qcompile_rdna3_decode_bf16_m4, qcompile_rdna3_decode_bf16_m8,
     qcompile_rdna3_prefill_bf16_16x64, qcompile_rdna3_prefill_bf16_32x64, qcompile_rdna3_prefill_bf16_64x128,
     qcompile_rdna3_prefill_bf16_128x128},
};

const char* kWrongDevice =
    "gptq_gemm_rdna3 runs on gfx1100 only (Radeon RX 7900 XTX, XT, GRE; PRO W7900, W7800); this device is another "
    "architecture, "
    "for which the library holds empty stubs";

#if defined(QCOMPILE_EMULATION)
bool right_device() { return strcmp(qcompile_emulation::architecture(), "gfx1100") == 0; }
const char* launch_error() { return nullptr; }
#else
bool right_device() {
  // "gfx1100" alone or followed by features ("gfx1100:sramecc-").
  int device = 0;
  hipDeviceProp_t properties;
  if (hipGetDevice(&device) != hipSuccess || hipGetDeviceProperties(&properties, device) != hipSuccess) return false;
  return strncmp(properties.gcnArchName, "gfx1100", 7) == 0 &&
         (properties.gcnArchName[7] == 0 || properties.gcnArchName[7] == ':');
}
const char* launch_error() {
  const hipError_t error = hipGetLastError();
  return error == hipSuccess ? nullptr : hipGetErrorString(error);
}
#endif

}  // namespace

extern "C" const char* qcompile_rdna3_launch(const qcompile_rdna3_problem* problem) {
  const qcompile_rdna3_problem& p = *problem;
  qcompile_rdna3_plan plan;
  if (const char* reason = qcompile_rdna3_make_plan(problem, &plan)) return reason;
  if (!right_device()) return kWrongDevice;
  const uint16_t* a = static_cast<const uint16_t*>(p.a);
  const int32_t* perm = static_cast<const int32_t*>(p.perm);
  uint16_t* out = static_cast<uint16_t*>(p.out);
  float* partial = static_cast<float*>(p.workspace);
  const int m = p.m, n = p.n, k = p.k, group = p.group, zero_offset = p.zero_offset, splits = plan.splits;
  if (plan.gathers) {
    const size_t behind = splits > 1 ? size_t(splits) * m * n * 4 : 0;
    uint16_t* gathered = reinterpret_cast<uint16_t*>(static_cast<char*>(p.workspace) + behind);
    const int chunk = qcompile_rdna3::kGatherThreads * 8;
    QC_LAUNCH(qcompile_rdna3_gather, m, (k + chunk - 1) / chunk, 1, qcompile_rdna3::kGatherThreads, p.stream, a, perm, gathered,
              m, k);
    a = gathered;
    perm = nullptr;
  }
  const qcompile_rdna3_kernel kernel = kKernels[p.bf16 != 0][plan.path];
  const uint32_t* qweight = static_cast<const uint32_t*>(p.qweight);
  const uint32_t* qzeros = static_cast<const uint32_t*>(p.qzeros);
  const uint16_t* scales = static_cast<const uint16_t*>(p.scales);
  QC_LAUNCH(kernel, plan.grid_x, plan.grid_y, plan.grid_z, plan.threads, p.stream, a, qweight, qzeros, scales, perm, out,
            partial, m, n, k, group, zero_offset, splits);
  if (splits > 1) {
    const int count = m * n, chunk = qcompile_rdna3::kReduceThreads * 4;
    const auto reduce = p.bf16 != 0 ? qcompile_rdna3_reduce_bf16 : qcompile_rdna3_reduce_f16;
    QC_LAUNCH(reduce, (count + chunk - 1) / chunk, 1, 1, qcompile_rdna3::kReduceThreads, p.stream, partial, out, count, splits);
  }
  return launch_error();
}

#endif
