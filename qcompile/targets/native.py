"""Target `native`: our own x86-64 (and plain C++) CPU kernels in csrc/cpu, at the best instruction-set level of the machine."""

import torch
from torch import Tensor

from qcompile.kernels import Kernel, Reasons, Site, unmet
from qcompile.meaning import Operands
from qcompile.platform import Platform
from qcompile.platform.cost import predicted
from qcompile.targets.native_ops import missing_ops, packed_int4_bytes

WIDE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Time over the limit max(bytes / bandwidth, operations / peak), by rows; measured on Zen 4 with 2 threads and cold weights.
INT4_FACTORS = ((1, 1.05), (2, 1.08), (4, 1.25), (8, 1.14), (12, 1.08), (16, 1.14), (24, 1.08))
# float16 takes two products for one, float32 has no pair instruction: half the arithmetic rate and less.
INT4_WIDE_FACTORS = ((1, 1.2), (2, 1.9), (4, 2.6), (8, 3.0))


def missing(where: Platform) -> Reasons:
    """What this platform lacks for our kernels: an x86-64 or aarch64 processor of the host, or the compiled library."""
    reason = None if where.simulated else missing_ops()
    return unmet(
        (where.machine in ("x86_64", "AMD64", "aarch64", "arm64"), f"has no kernels for {where.machine or 'an unknown processor'}"),
        (reason is None, reason or ""),
    )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def common_refusals(site: Site) -> Reasons:
    return unmet(
        (site.device == "cpu", f"runs on the CPU, this weight is on {site.device}"),
        (site.dtype in WIDE_DTYPES, f"takes bfloat16, float16 or float32 activations, got {dtype_name(site.dtype)}"),
        (
            site.scale_dtype in WIDE_DTYPES,
            f"takes bfloat16, float16 or float32 scales, got {dtype_name(site.scale_dtype)}",
        ),
    )


def int4_refusals(site: Site) -> Reasons:
    return common_refusals(site) + unmet(
        (site.bits <= 4, f"takes weights of up to 4 bits, this one has {site.bits} bits"),
        (site.codebook == "", f"takes integer codes, these are indices of the code book {site.codebook}"),
        (
            0 <= site.zero_range[0] and site.zero_range[1] <= 16,
            f"takes zero points of 0 to 16, got {site.zero_range[0]} to {site.zero_range[1]}",
        ),
    )


def pack_extras(weight: Operands) -> tuple[Tensor, ...]:
    """perm as int64 and bias as float32, as far as they are there."""
    extras = []
    if weight.perm is not None:
        extras.append(weight.perm.to(torch.int64))
    if weight.bias is not None:
        extras.append(weight.bias.to(torch.float32))
    return tuple(extras)


def extras_of(packed: tuple[Tensor, ...], site: Site) -> tuple[Tensor | None, Tensor | None]:
    """(perm, bias) of what `pack` returned."""
    perm = packed[1] if site.act_order else None
    return perm, packed[-1] if site.has_bias else None


def int4_pack(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    packed = torch.ops.qcompile.native_int4_pack.default(weight.codes, weight.scales, weight.zeros, site.group)
    return (packed, *pack_extras(weight))


def int4_call(x: Tensor, packed: tuple[Tensor, ...], site: Site) -> Tensor:
    perm, bias = extras_of(packed, site)
    y: Tensor = torch.ops.qcompile.native_int4_linear.default(x, packed[0], perm, bias, site.n, site.k, site.group)
    return y


def int4_seconds(site: Site, m: int, where: Platform) -> float:
    size = packed_int4_bytes(site.n, site.k, site.group, 2, zeros=not site.symmetric)
    factors = INT4_FACTORS if site.dtype == torch.bfloat16 else INT4_WIDE_FACTORS
    return predicted(where, size, 2.0 * m * site.n * site.k, m, factors)


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        name="native.int4",
        missing=missing,
        refuses=lambda site: int4_refusals(site)
        + unmet((site.activation.is_none, f"leaves activations as they are, this layer wants {site.activation.kind} int8")),
        pack=int4_pack,
        call=int4_call,
        seconds=int4_seconds,
    ),
)
