"""Our kernel for integer codes of 1 to 8 bits at their own width, with offsets and scales of two levels (csrc/cpu/planes.h)."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from qcompile.hardware import Platform
from qcompile.hardware.cost import predicted
from qcompile.kernel import Extras, Kernel, Need, Reasons, Site, floats_or_none, integer_codes, on_cpu, unmet
from qcompile.meaning import INNER_DTYPES, SCALE_DTYPES, Operands, group_count
from qcompile.targets.native_ops import BLOCK, missing_op
from qcompile.targets.native_rounding import rounded, rounding_bytes, whole_blocks

_LINE, _TILE, _HALF = 64, 32, 16
PLANES_LAYOUT = 1  # kPlanesLayout of csrc/cpu/planes.h


def planes_bytes(
    bits: int,
    n: int,
    k: int,
    group: int,
    levels: tuple[torch.dtype | None, torch.dtype | None],
    *,
    zeros: bool = False,
    outers: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
    outer_group: int = 0,
    inner_bits: int = 0,
) -> int:
    """Bytes of a packed weight, as csrc/cpu/planes.h lays it out. levels: dtypes of scales and offsets, outers: of outer ones."""
    group = min(group, k)
    blocks, groups = -(-n // BLOCK), group_count(k, group)
    halves = groups * -(-group // _HALF)
    codes = -(-halves // 2) * bits * _LINE
    fields = sum(dtype in INNER_DTYPES for dtype in levels)
    inner = -(-groups * fields // _TILE) * inner_bits * _LINE
    floats = sum(dtype.itemsize for dtype in levels if dtype is not None and dtype not in INNER_DTYPES)
    outer = sum(dtype.itemsize for dtype in outers if dtype is not None)
    outer_groups = group_count(k, min(outer_group or k, k))
    return _LINE + blocks * (codes + inner + groups * BLOCK * (floats + zeros) + outer_groups * BLOCK * outer)


def _fake_pack(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    offsets: Tensor | None,
    outer: Tensor | None,
    outer_offset: Tensor | None,
    bits: int,
    group: int,
    outer_group: int,
    inner_bits: int,
) -> Tensor:
    n, k = codes.shape
    offset, level, shift = (None if item is None else item.dtype for item in (offsets, outer, outer_offset))
    size = planes_bytes(
        bits,
        n,
        k,
        group,
        (scales.dtype, offset),
        zeros=zeros is not None,
        outers=(level, shift),
        outer_group=outer_group,
        inner_bits=inner_bits,
    )
    return codes.new_empty((size,), dtype=torch.uint8)


def _fake_linear(
    x: Tensor, packed: Tensor, perm: Tensor | None, bias: Tensor | None, n: int, k: int, group: int, bits: int, *, level: int = -1
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


@cache
def missing_planes() -> str | None:
    """None when the compiled library has the operators, which then have their fake kernels; otherwise the reason why not."""
    return missing_op("native_planes_pack", _fake_pack) or missing_op("native_planes_linear", _fake_linear)


def _known_levels(site: Site) -> tuple[Need, ...]:
    scales = (*SCALE_DTYPES, *(INNER_DTYPES if site.outer else ()))
    offsets = (*SCALE_DTYPES, *(INNER_DTYPES if site.outer_offset else ()))
    return (
        (site.scale_dtype in scales, f"takes bfloat16, float16 or float32 scales, got {site.scale_dtype}"),
        (site.offset_dtype in offsets, f"takes bfloat16, float16 or float32 offsets, got {site.offset_dtype}"),
    )


def refuses(site: Site) -> Reasons:
    """What the kernel cannot take of a site."""
    low, high = site.zero_range
    most = 1 << site.bits
    plain = site.bits in (4, 8) and not (site.offset or site.outer or site.codebook)
    return unmet(
        on_cpu(site),
        integer_codes(site),
        (not plain, "leaves 4 and 8 bits without offsets and outer scales to native.int4 and native.int8_a16"),
        (site.dtype in SCALE_DTYPES, f"takes bfloat16, float16 or float32 activations, got {site.dtype}"),
        *_known_levels(site),
        (site.bits == 8 or (low >= 0 and high <= most), f"takes zero points of 0 to {most}, got {low} to {high}"),
        floats_or_none(site),
        whole_blocks(site),
    )


def pack(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(packed bytes), with everything at the width that the checkpoint has."""
    packed = torch.ops.qcompile.native_planes_pack.default(
        weight.codes,
        weight.scales,
        weight.zeros,
        weight.offsets,
        weight.outer,
        weight.outer_offset,
        site.bits,
        site.group,
        site.outer_group or max(site.k, site.group),
        site.inner_bits,
    )
    return (packed,)


def layout() -> str:
    """The same bytes for every instruction-set level and processor."""
    return f"native planes {PLANES_LAYOUT}"


def call(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    y: Tensor = torch.ops.qcompile.native_planes_linear.default(
        rounded(x, extras, site), packed[0], extras.perm, extras.bias, site.n, site.k, site.group, site.bits
    )
    return y


def size_of(site: Site) -> int:
    """About the bytes that are read of a packed weight: float32 numbers that 16 bits hold are kept in 16 bits."""
    narrow = torch.bfloat16
    levels = [dtype if dtype in INNER_DTYPES else narrow for dtype in (site.scale_dtype, site.offset_dtype)]
    return planes_bytes(
        site.bits,
        site.n,
        site.k,
        site.group,
        (levels[0], levels[1] if site.offset else None),
        zeros=not site.symmetric,
        outers=(narrow if site.outer else None, narrow if site.outer_offset else None),
        outer_group=site.outer_group,
        inner_bits=site.inner_bits,
    )


def kernel(
    missing: Callable[[Platform], Reasons],
    extras: Callable[[Extras, Site], Extras],
    factors: Callable[[Site], tuple[tuple[int, float], ...]],
) -> Kernel:
    """The row. missing: what a platform lacks for our kernels at all; factors: time over the limit, by rows."""

    def lacking(where: Platform) -> Reasons:
        reasons = missing(where)
        if reasons or where.simulated:
            return reasons
        reason = missing_planes()
        return () if reason is None else (reason,)

    return Kernel(
        name="native.planes",
        missing=lacking,
        refuses=refuses,
        stored_bits=1,
        pack=pack,
        call=call,
        extras=extras,
        layout=layout,
        seconds=lambda site, m, where: predicted(
            where, size_of(site) + rounding_bytes(site, m), 2.0 * m * site.n * site.k, m, factors(site)
        ),
    )
