"""Target `native`: our own CPU kernels in csrc/cpu, at the best instruction-set level of the machine."""

from math import gcd
from typing import Any

import torch
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.codebooks import CODE_BOOKS, NUMBERS
from qcompile.hardware import Platform
from qcompile.hardware.cost import predicted
from qcompile.kernel import (
    Extras,
    FewRows,
    Kernel,
    Need,
    Reasons,
    Site,
    floats_or_none,
    integer_codes,
    integers_or_none,
    most_bits,
    no_offsets,
    on_cpu,
    one_level,
    rounding_permitted,
    unmet,
)
from qcompile.meaning import BLOCK_SCALE_DTYPES, Operands, group_count
from qcompile.targets import native_planes
from qcompile.targets.native_ops import BLOCK, PACKED_LAYOUT, missing_ops, packed_bytes
from qcompile.targets.native_rounding import rounded, rounding_bytes, whole_blocks

WIDE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MACHINES = ("x86_64", "AMD64", "amd64", "aarch64", "arm64")
MOST_GROUP = 65536  # beyond it 32-bit sums of products of bytes could overflow

# How the kernels name the kinds of rounding (Rounding in csrc/cpu/linear.h).
ROUNDINGS = {"token": 0, "token_asymmetric": 1, "tensor": 2, "group": 3}
OWN_ROUNDING = ActivationQuant(kind="token", divisor=127.0, low=-127)
A8_GROUP = 128  # values of x that share a scale where the checkpoint leaves the rounding to us

# Time over the limit max(bytes / bandwidth, operations / peak), by rows; measured on Zen 4 with 2 threads and cold weights.
INT4_FACTORS = ((1, 1.02), (2, 1.06), (4, 1.13), (8, 1.05), (12, 1.06), (16, 1.08), (64, 1.1))
# float16 takes two products for one, float32 has no pair instruction: half the arithmetic rate and less.
WIDE_FACTORS = ((1, 1.26), (2, 1.65), (4, 2.15))
INT8_FACTORS = ((1, 1.02), (8, 1.1), (12, 1.2), (64, 1.15))
INT4_A8_FACTORS = ((1, 1.02), (4, 1.1), (8, 1.28))


def missing(where: Platform) -> Reasons:
    """What this platform lacks for our kernels: a 64-bit processor that they are written for, or the compiled library."""
    reason = None if where.simulated else missing_ops()
    return unmet(
        (where.machine in MACHINES, f"has no kernels for {where.machine or 'an unknown processor'}"),
        (reason is None, reason or ""),
    )


def _float_activations(site: Site) -> Need:
    return site.dtype in WIDE_DTYPES, f"takes bfloat16, float16 or float32 activations, got {site.dtype}"


def _common_refusals(site: Site, bits: int) -> Reasons:
    return unmet(
        on_cpu(site),
        integer_codes(site),
        most_bits(site, bits),
        no_offsets(site),
        one_level(site),
        _float_activations(site),
        (site.scale_dtype in WIDE_DTYPES, f"takes bfloat16, float16 or float32 scales, got {site.scale_dtype}"),
        (
            bits == 8 or (site.zero_range[0] >= 0 and site.zero_range[1] <= 16),
            f"takes zero points of 0 to 16, got {site.zero_range[0]} to {site.zero_range[1]}",
        ),
        (bits == 4 or site.group <= MOST_GROUP, f"takes groups of up to {MOST_GROUP}, got {site.group}"),
    )


def refuses_int4(site: Site) -> Reasons:
    return _common_refusals(site, 4) + unmet(floats_or_none(site), whole_blocks(site))


def _value_refusals(site: Site) -> Reasons:
    """Of codes that stand for floats."""
    known = (*WIDE_DTYPES, *BLOCK_SCALE_DTYPES)
    return unmet(
        on_cpu(site),
        no_offsets(site),
        _float_activations(site),
        (site.outer_group == 0, f"takes outer scales of whole outputs, these are for {site.outer_group} values of K each"),
        (site.scale_dtype in known, f"takes bfloat16, float16, float32, E4M3 or E8M0 scales, got {site.scale_dtype}"),
        floats_or_none(site),
        whole_blocks(site),
    )


def refuses_book4(site: Site) -> Reasons:
    found = "numbers of 8 bits" if site.codebook else "integers"
    book = site.codebook in CODE_BOOKS, f"takes codes of a code book, these are {found}"
    return unmet(book, most_bits(site, 4)) + _value_refusals(site)


def refuses_fp8(site: Site) -> Reasons:
    found = f"codes of {site.codebook}" if site.codebook else "integers"
    return unmet((site.codebook in NUMBERS, f"takes numbers in E4M3 or E5M2, these are {found}")) + _value_refusals(site)


def refuses_int8_a16(site: Site) -> Reasons:
    return _common_refusals(site, 8) + unmet(floats_or_none(site), whole_blocks(site))


def refuses_int8(site: Site) -> Reasons:
    return _common_refusals(site, 8) + unmet(rounding_permitted(site), integers_or_none(site))


def refuses_int4_a8(site: Site) -> Reasons:
    kind = site.activation.kind
    return (
        *_common_refusals(site, 4),
        *unmet(
            rounding_permitted(site),
            (kind in ("none", "token"), f"rounds activations per token or per group, this linear wants {site.activation.spec}"),
            (
                kind != "none" or a8_group(site) >= 16,
                f"rounds activations in groups of 16 to {A8_GROUP}, which must divide the weight's group of {site.group}",
            ),
        ),
    )


def a8_group(site: Site) -> int:
    """The group int4_a8 packs with: the weight's, cut into parts of at most A8_GROUP where x is rounded in the same groups."""
    if site.group <= A8_GROUP or not site.activation.is_none:
        return site.group
    return gcd(site.group, A8_GROUP)


def readable_extras(extras: Extras, site: Site) -> Extras:
    """The bias and a static zero point as float32."""
    perm, bias, scale, zero = extras
    return Extras(
        None if perm is None else perm.to(torch.int64),
        None if bias is None else bias.to(torch.float32),
        None if scale is None else scale.reshape(1),
        None if zero is None else zero.reshape(1).to(torch.float32),
    )


def int4_group(site: Site) -> int:
    """The group int4 packs with: where int4_a8 may run, too, its group, so that both read the same packed weight."""
    return a8_group(site) if not refuses_int4_a8(site) else site.group


def pack_int4(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(packed bytes), with every group cut into parts of `int4_group`."""
    group = int4_group(site)
    scales, zeros = weight.scales, weight.zeros
    if group != site.group:
        parts, count = site.group // group, group_count(site.k, group)  # a short last group has fewer parts
        scales = scales.repeat_interleave(parts, 1)[:, :count]
        zeros = None if zeros is None else zeros.repeat_interleave(parts, 1)[:, :count]
    packed = torch.ops.qcompile.native_int4_pack.default(weight.codes, scales, zeros, group)
    return (packed,)


def _wide_outer(weight: Operands) -> Tensor | None:
    """Outer scales as both families of books and numbers store them."""
    return None if weight.outer is None else weight.outer.to(torch.float32)


def pack_book4(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(packed bytes), with the code book and both levels of scales."""
    book = torch.tensor(CODE_BOOKS[site.codebook], dtype=torch.float32, device="cpu")
    packed = torch.ops.qcompile.native_book4_pack.default(weight.codes, weight.scales, _wide_outer(weight), book, site.group)
    return (packed,)


def _shared(site: Site) -> bool:
    """Whether all outputs of each of the kernels' blocks have the same scales."""
    return site.n > BLOCK and (site.rows % BLOCK == 0 or site.rows >= site.n)


def pack_fp8(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(packed bytes); 16 outputs that have the same scales share them."""
    codes = weight.codes.view(NUMBERS[site.codebook])
    scales = weight.scales[::BLOCK] if _shared(site) else weight.scales
    packed = torch.ops.qcompile.native_fp8_pack.default(codes, scales, _wide_outer(weight), site.group)
    return (packed,)


def pack_int8(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(packed bytes)."""
    packed = torch.ops.qcompile.native_int8_pack.default(weight.codes, weight.scales, weight.zeros, site.group)
    return (packed,)


def layout() -> str:
    """The same bytes for every instruction-set level and processor."""
    return f"native {PACKED_LAYOUT}"


def call_int4(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    y: Tensor = torch.ops.qcompile.native_int4_linear.default(
        rounded(x, extras, site), packed[0], extras.perm, extras.bias, site.n, site.k, int4_group(site)
    )
    return y


def call_book4(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    y: Tensor = torch.ops.qcompile.native_book4_linear.default(
        rounded(x, extras, site), packed[0], extras.perm, extras.bias, site.n, site.k, site.group
    )
    return y


def call_fp8(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    y: Tensor = torch.ops.qcompile.native_fp8_linear.default(
        rounded(x, extras, site), packed[0], extras.perm, extras.bias, site.n, site.k, site.group, site.codebook == "e5m2"
    )
    return y


def call_int8_a16(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    y: Tensor = torch.ops.qcompile.native_int8_a16_linear.default(
        rounded(x, extras, site), packed[0], extras.perm, extras.bias, site.n, site.k, site.group
    )
    return y


def _call_rounded(
    op: Any, x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site, kind: str, group: int, few: int
) -> Tensor:
    asked = OWN_ROUNDING if site.activation.is_none else site.activation
    narrow = asked.arithmetic == "input"
    y: Tensor = op(
        x,
        packed[0],
        *extras,
        site.n,
        site.k,
        group,
        ROUNDINGS[kind],
        float(asked.divisor),
        float(asked.low),
        narrow,
        few,
    )
    return y


def call_int8(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site, few: int = 0) -> Tensor:
    """few: x of fewer rows is not rounded."""
    kind = "token" if site.activation.is_none else site.activation.kind
    return _call_rounded(torch.ops.qcompile.native_int8_linear.default, x, packed, extras, site, kind, site.group, few)


def call_int4_a8(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site, few: int = 0) -> Tensor:
    """few: x of fewer rows is not rounded."""
    kind = "group" if site.activation.is_none else site.activation.kind
    return _call_rounded(torch.ops.qcompile.native_int4_a8_linear.default, x, packed, extras, site, kind, a8_group(site), few)


def _seconds(site: Site, m: int, where: Platform, bits: int, factors: tuple[tuple[int, float], ...], *, int8: bool) -> float:
    size = packed_bytes(bits, site.n, site.k, site.group, 2, zeros=not site.symmetric)
    return predicted(where, size + rounding_bytes(site, m), 2.0 * m * site.n * site.k, m, factors, int8=int8)


def _seconds_book4(site: Site, m: int, where: Platform) -> float:
    size = packed_bytes(4, site.n, site.k, site.group, site.scale_dtype.itemsize, book=True, outer=site.outer)
    return predicted(where, size + rounding_bytes(site, m), 2.0 * m * site.n * site.k, m, _wide(site), int8=False)


def _seconds_fp8(site: Site, m: int, where: Platform) -> float:
    size = packed_bytes(
        8, site.n, site.k, site.group, site.scale_dtype.itemsize, sums=False, outer=site.outer, shared=_shared(site)
    )
    return predicted(where, size + rounding_bytes(site, m), 2.0 * m * site.n * site.k, m, _wide(site), int8=False)


def _wide(site: Site) -> tuple[tuple[int, float], ...]:
    return INT4_FACTORS if site.dtype == torch.bfloat16 else WIDE_FACTORS


def _wide_unless_narrow(site: Site) -> tuple[tuple[int, float], ...]:
    """Codes of 8 bits at their own width have no product of pairs of bfloat16."""
    return _wide(site) if site.bits < 8 else WIDE_FACTORS


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        name="native.int4",
        missing=missing,
        refuses=refuses_int4,
        pack=pack_int4,
        call=call_int4,
        extras=readable_extras,
        form=lambda site: f"int4 in groups of {int4_group(site)}",
        layout=layout,
        seconds=lambda site, m, where: _seconds(site, m, where, 4, _wide(site), int8=False),
    ),
    Kernel(
        name="native.book4",
        missing=missing,
        refuses=refuses_book4,
        pack=pack_book4,
        call=call_book4,
        extras=readable_extras,
        layout=layout,
        seconds=_seconds_book4,
    ),
    native_planes.kernel(missing, readable_extras, _wide_unless_narrow),
    Kernel(
        name="native.fp8",
        missing=missing,
        refuses=refuses_fp8,
        stored_bits=8,
        pack=pack_fp8,
        call=call_fp8,
        extras=readable_extras,
        layout=layout,
        seconds=_seconds_fp8,
    ),
    Kernel(
        name="native.int8",
        missing=missing,
        refuses=refuses_int8,
        stored_bits=8,
        pack=pack_int8,
        call=call_int8,
        extras=readable_extras,
        form=lambda _: "int8",
        few=FewRows("native.int8_a16", call_int8),
        layout=layout,
        seconds=lambda site, m, where: _seconds(site, m, where, 8, INT8_FACTORS, int8=True),
        default_activation=OWN_ROUNDING,
    ),
    Kernel(
        name="native.int8_a16",
        missing=missing,
        refuses=refuses_int8_a16,
        stored_bits=8,
        pack=pack_int8,
        call=call_int8_a16,
        extras=readable_extras,
        form=lambda _: "int8",
        layout=layout,
        seconds=lambda site, m, where: _seconds(site, m, where, 8, _wide(site), int8=False),
    ),
    Kernel(
        name="native.int4_a8",
        missing=missing,
        refuses=refuses_int4_a8,
        pack=pack_int4,
        call=call_int4_a8,
        extras=readable_extras,
        form=lambda site: f"int4 in groups of {int4_group(site)}",
        few=FewRows("native.int4", call_int4_a8),
        layout=layout,
        seconds=lambda site, m, where: _seconds(site, m, where, 4, INT4_A8_FACTORS, int8=True),
    ),
)
