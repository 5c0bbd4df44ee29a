"""Estimated limits of a platform (memory bandwidth, arithmetic rates) and the time model `max(bytes, operations) * factor`."""

from collections.abc import Sequence
from dataclasses import replace

from qcompile.hardware.model import Platform

# Per core and second. Zen 4 measured (2 cores: 32 GB/s, 460 GFLOP/s bf16, 915 GOP/s int8); the others by the instructions' widths.
CORE_BANDWIDTH = 16e9
SOCKET_BANDWIDTH = 250e9
# Dense bfloat16 linear of torch, as `predicted` takes it (measured on Zen 4, 2 threads, cold weights).
DENSE_FACTORS = ((1, 1.65), (2, 1.5), (4, 1.66), (8, 1.94), (16, 2.2), (32, 1.58), (64, 1.31), (128, 1.16), (256, 1.08))
GPU_BANDWIDTH = {"rocm": 960e9, "cuda": 2000e9, "xpu": 560e9}
GPU_FLOPS = {"rocm": 100e12, "cuda": 300e12, "xpu": 150e12}


def estimated(where: Platform) -> Platform:
    """The platform with its limits filled in from instruction sets, cores and the accelerator's kind."""
    if where.torch_build in GPU_FLOPS and where.gpu(where.torch_build):
        flops = GPU_FLOPS[where.torch_build]
        return replace(where, bandwidth=GPU_BANDWIDTH[where.torch_build], bf16_flops=flops, int8_ops=2 * flops)
    isa = where.isa
    wide = "avx512f" in isa
    bf16 = 2000e9 if "amx_bf16" in isa else 230e9 if "avx512_bf16" in isa else 115e9 if wide else 60e9
    int8 = 4000e9 if "amx_int8" in isa else 457e9 if "avx512_vnni" in isa else 230e9 if "avx_vnni" in isa else bf16
    bandwidth = min(CORE_BANDWIDTH * where.cores, SOCKET_BANDWIDTH)
    return replace(where, bandwidth=bandwidth, bf16_flops=bf16 * where.cores, int8_ops=int8 * where.cores)


def dense_seconds(n: int, k: int, m: int, where: Platform) -> float:
    """Predicted seconds of a dense bfloat16 product of x [m, k] with a weight [n, k]."""
    size = 2.0 * n * k
    return predicted(where, size, size * m, m, DENSE_FACTORS)


def predicted(
    where: Platform, size: float, operations: float, m: int, factors: Sequence[tuple[int, float]], *, int8: bool = False
) -> float:
    """Seconds for one product: max(size / bandwidth, operations / peak) times the measured factor of its row count.

    size: bytes read; operations: 2 * m * n * k; factors: (least m, time / limit), ascending, the last one with least m <= m counts.
    """
    limit = max(size / where.bandwidth, operations / (where.int8_ops if int8 else where.bf16_flops))
    factor = factors[0][1]
    for least, value in factors:
        if m >= least:
            factor = value
    return limit * factor
