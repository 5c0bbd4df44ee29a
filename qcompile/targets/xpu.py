"""Target `xpu`: W4A16 on Intel GPUs, by vLLM's XPU kernel library or by torch's own int4 operator.

Neither operator checks its operands: a zero-point tensor in the wrong orientation has the right number of elements and gives wrong
numbers silently. So layouts here follow from the canonical weight alone, never from a checkpoint's shapes, and all rules are ours.
"""

import torch
from torch import Tensor

from qcompile.hardware import Platform
from qcompile.hardware.cost import predicted
from qcompile.kernel import (
    Extras,
    Kernel,
    Reasons,
    Site,
    integer_codes,
    most_bits,
    no_offsets,
    one_level,
    scales_fit_float16,
    unmet,
    weight_only,
    whole_groups,
)
from qcompile.meaning import Operands
from qcompile.targets.binding import Foreign, empty_output, no_rows
from qcompile.targets.nibbles import nibbles

SYMMETRIC_ZERO = 8  # unsigned nibbles of a symmetric weight are code + 8
# Estimates: a decode step near the memory's speed, a prefill at half of the matrix engines' rate. The torch operator has no bias.
GEMM_FACTORS = ((1, 1.5), (16, 2.0))
INT4PACK_FACTORS = ((1, 1.6), (16, 2.1))


def _gemm_fake(A: Tensor, B: Tensor, *_: object, **__: object) -> Tensor:  # noqa: N803 - the library's own names
    return A.new_empty((A.shape[0], B.shape[1]))


def _int4pack_fake(self: Tensor, mat2: Tensor, *_: object, **__: object) -> Tensor:
    return self.new_empty((self.shape[0], mat2.shape[0]))


GEMM = Foreign(
    "_xpu_C",
    "int4_gemm_w4a16",
    ("A", "B", "bias", "B_scale", "B_zp", "group_size", "g_idx"),
    "(Tensor A, Tensor B, Tensor? bias, Tensor B_scale, Tensor B_zp, int group_size, Tensor? g_idx) -> Tensor",
    _gemm_fake,
)
INT4PACK = Foreign(
    "aten",
    "_weight_int4pack_mm_with_scales_and_zeros",
    ("self", "mat2", "qGroupSize", "qScale", "qZeros"),
    "(Tensor self, Tensor mat2, int qGroupSize, Tensor qScale, Tensor qZeros) -> Tensor",
    _int4pack_fake,
)


def missing(where: Platform, operator: Foreign, library: str = "") -> Reasons:
    """What this platform lacks: the GPU, a torch built for it, the kernel library, the operator or one of its arguments."""
    lacking = unmet(
        (bool(where.gpu("xpu")), "runs on an Intel XPU, this platform has none"),
        (where.torch_build == "xpu", f"needs a torch built for XPU, this one is built for {where.torch_build}"),
    )
    if lacking:
        return lacking
    if library and not (found := where.library(library)).present:
        return (found.detail or f"{library} is {found.state}",)
    return () if where.simulated and operator.live() is None else operator.reasons()


def refuses(site: Site) -> Reasons:
    low, high = site.zero_range
    return unmet(
        (site.device == "xpu", f"runs on an XPU, this linear is on {site.device}"),
        integer_codes(site),
        no_offsets(site),
        one_level(site),
        most_bits(site, 4),
        (site.group % 32 == 0, f"takes groups in multiples of 32, got {site.group}"),
        whole_groups(site),
        (site.n % 8 == 0, f"takes N in multiples of 8, got N={site.n}"),
        (site.dtype in (torch.float16, torch.bfloat16), f"takes float16 or bfloat16 activations, got {site.dtype}"),
        scales_fit_float16(site),
        weight_only(site),
        (low >= 0 and high <= 15, f"keeps zero points in 4 bits (0 to 15), got {low} to {high}"),
    )


def unsigned(weight: Operands) -> Tensor:
    """The codes as 0 .. 15."""
    return weight.codes + SYMMETRIC_ZERO if weight.zeros is None else weight.codes


def readable_extras(extras: Extras, site: Site) -> Extras:
    """The bias in the dtype of x."""
    return extras._replace(bias=None if extras.bias is None else extras.bias.to(site.dtype))


def pack_gemm(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(nibbles int32 [N, K/8], scales [G, N], zero points).

    Zero points: int8 [8] (one dimension selects the scalar path) for a symmetric weight, otherwise the true ones (nothing is added
    to them) as int32 [G, N/8], packed along N.
    """
    zeros = torch.full_like(weight.codes[0, :1], SYMMETRIC_ZERO) if weight.zeros is None else nibbles(weight.zeros.t())
    return (nibbles(unsigned(weight)), weight.scales.t().to(site.dtype).contiguous(), zeros)


def call_gemm(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    """The operator reads B as [K/8, N] with stride 1 along K/8, and permutes the columns of A by g_idx itself."""
    if no_rows(x):
        return empty_output(x, site.n)
    weight, scales, zeros = packed
    flat = x.reshape(-1, site.k).contiguous()
    y = GEMM(A=flat, B=weight.t(), bias=extras.bias, B_scale=scales, B_zp=zeros, group_size=site.group, g_idx=extras.perm)
    return y.reshape((*x.shape[:-1], site.n))


def pack_int4pack(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(nibbles int32 [N, K/8], scales [G, N], zero points int8 [G, N])."""
    zeros = torch.full_like(weight.scales, SYMMETRIC_ZERO, dtype=torch.int8) if weight.zeros is None else weight.zeros
    scales = weight.scales.t().to(site.dtype).contiguous()
    return (nibbles(unsigned(weight)), scales, zeros.t().contiguous())


def call_int4pack(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    if no_rows(x):
        return empty_output(x, site.n)
    weight, scales, zeros = packed
    y = INT4PACK(self=extras.rows(x, site.k), mat2=weight, qGroupSize=site.group, qScale=scales, qZeros=zeros)
    return extras.plus_bias(y).reshape((*x.shape[:-1], site.n))


def _bytes(site: Site) -> float:
    return site.n * site.k / 2 + 2.5 * site.n * site.groups


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        name="xpu.int4_gemm_w4a16",
        missing=lambda where: missing(where, GEMM, "vllm_xpu_kernels"),
        refuses=refuses,
        pack=pack_gemm,
        call=call_gemm,
        extras=readable_extras,
        seconds=lambda site, m, where: predicted(where, _bytes(site), 2.0 * m * site.n * site.k, m, GEMM_FACTORS),
    ),
    Kernel(
        name="xpu.int4pack",
        missing=lambda where: missing(where, INT4PACK),
        refuses=refuses,
        pack=pack_int4pack,
        call=call_int4pack,
        extras=readable_extras,
        seconds=lambda site, m, where: predicted(where, _bytes(site), 2.0 * m * site.n * site.k, m, INT4PACK_FACTORS),
    ),
)
