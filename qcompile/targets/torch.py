"""Target `torch`: quantized operators that ship with PyTorch itself (ATen on the CPU, oneDNN).

`aten._dyn_quant_matmul_4bit` is not here: on x86 it takes about 95 times what the memory allows.
"""

from typing import Any

import torch
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.hardware import Platform
from qcompile.hardware.cost import predicted
from qcompile.kernel import (
    Extras,
    Kernel,
    Need,
    Reasons,
    Site,
    integer_codes,
    most_bits,
    no_offsets,
    on_cpu,
    one_level,
    rounding_permitted,
    scales_fit_float16,
    unmet,
    weight_only,
    whole_groups,
)
from qcompile.meaning import Operands
from qcompile.targets import onednn
from qcompile.targets.binding import schema_objections
from qcompile.weights.fingerprint import of_processor

aten: Any = torch.ops.aten
INT4_GROUPS = (256, 128, 64, 32)  # what the operator takes; a larger group is written as several with the same scale
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
TOKEN = ActivationQuant(kind="token")

# time / limit by least row count, weights cold in cache. int8pack is a loop over rows: good for one, no better than dense for more.
INT4_FACTORS = ((1, 1.63), (2, 2.04), (4, 2.69))
INT8_FACTORS = ((1, 1.4), (2, 8.0), (64, 7.0))
QLINEAR_FACTORS = ((1, 1.64), (2, 1.80), (4, 1.46), (8, 1.67), (16, 1.86), (32, 1.47), (64, 1.27), (128, 1.17))


def missing_aten(*needs: tuple[str, tuple[str, ...]]) -> Reasons:
    """What this torch lacks of ATen operators, given as (name, arguments)."""
    lacking: list[str] = []
    for name, arguments in needs:
        packet = getattr(aten, name, None)
        if packet is None:
            lacking.append(f"this torch has no operator aten::{name}")
        else:
            lacking += schema_objections(packet.default._schema, arguments)
    return tuple(lacking)


def missing_int4(where: Platform) -> Reasons:
    return missing_aten(
        ("_weight_int4pack_mm_for_cpu", ("self", "mat2", "qGroupSize", "qScaleAndZeros")),
        ("_convert_weight_to_int4pack_for_cpu", ("self", "innerKTiles")),
    )


def missing_int8(where: Platform) -> Reasons:
    return missing_aten(("_weight_int8pack_mm", ("self", "mat2", "scales")))


def missing_qlinear(where: Platform) -> Reasons:
    if where.simulated:
        vnni = bool({"avx512_vnni", "avx_vnni", "amx_int8"} & where.isa)
        return unmet((vnni, "oneDNN's uint8 x int8 product saturates on processors without VNNI: wrong results"))
    return onednn.objections()


def _common(site: Site) -> tuple[Need, ...]:
    return (
        on_cpu(site),
        integer_codes(site),
        no_offsets(site),
        one_level(site),
        (site.dtype in FLOATS, f"takes bfloat16, float16 or float32 activations, got {site.dtype}"),
    )


def _weight_only(site: Site) -> tuple[Need, ...]:
    return (
        *_common(site),
        weight_only(site),
        scales_fit_float16(site),
    )


def int4_group(group: int) -> int:
    """The largest group the operator takes that divides this one; 0 if there is none."""
    return next((size for size in INT4_GROUPS if group % size == 0), 0)


def refuses_int4(site: Site) -> Reasons:
    return unmet(
        *_weight_only(site),
        most_bits(site, 4),
        (int4_group(site.group) > 0, f"takes groups in multiples of 32, got {site.group}"),
        whole_groups(site),
        (site.n % 16 == 0, f"takes N in multiples of 16, got N={site.n}"),
    )


def pack_int4(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(ATen's packed nibbles uint8 [N, K/2], scale and offset [G, N, 2] in the dtype of x).

    The operator computes s * (code - 8) + offset with codes of 0 .. 15: offset = (8 - zero) * s.
    """
    codes = weight.codes.to(torch.int32)
    scales = weight.scales.to(torch.float32)
    if weight.zeros is None:
        codes, offsets = codes + 8, scales * 0
    else:
        offsets = (8 - weight.zeros.to(torch.float32)) * scales
    pairs = torch.stack([scales.t(), offsets.t()], dim=-1).repeat_interleave(site.group // int4_group(site.group), dim=0)
    nibbles = aten._convert_weight_to_int4pack_for_cpu.default(codes, 1)
    return (nibbles, pairs.to(site.dtype).contiguous())


def call_int4(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    nibbles, pairs = packed
    y: Tensor = aten._weight_int4pack_mm_for_cpu.default(extras.rows(x, site.k), nibbles, int4_group(site.group), pairs)
    return _finished(y, extras, x, site)


def seconds_int4(site: Site, m: int, where: Platform) -> float:
    size = site.n * site.k / 2 + 4.0 * site.n * site.k / max(int4_group(site.group), 32)
    return predicted(where, size, 2.0 * m * site.n * site.k, m, INT4_FACTORS)


def refuses_int8(site: Site) -> Reasons:
    return unmet(
        *_weight_only(site),
        (site.symmetric, "takes symmetric weights, these have zero points"),
        (site.group == site.k, f"takes one scale per output channel, got groups of {site.group} along K={site.k}"),
        # With other K the operator reads past the rows: wrong numbers or a crash (torch 2.13.0).
        (site.k % 16 == 0, f"takes K in multiples of 16, got K={site.k}"),
    )


def pack_int8(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(codes int8 [N, K], scales [N] in the dtype of x)."""
    return (weight.codes.contiguous(), weight.scales.reshape(-1).to(site.dtype))


def call_int8(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    codes, scales = packed
    # A copy: for one row of bfloat16 the operator crashes if x lies at no multiple of 32 bytes, as a slice may (torch 2.13.0).
    flat = extras.rows(x, site.k).clone()
    y: Tensor = aten._weight_int8pack_mm.default(flat, codes, scales)
    return _finished(y, extras, x, site)


def seconds_int8(site: Site, m: int, where: Platform) -> float:
    return predicted(where, site.n * site.k + 2.0 * site.n, 2.0 * m * site.n * site.k, m, INT8_FACTORS)


def layout() -> str:
    """ATen orders packed weights for the processor. (Not for oneDNN's, which are handles of this process.)"""
    return f"aten {of_processor()}"


def refuses_qlinear(site: Site) -> Reasons:
    kinds = ("none", "token", "token_asymmetric", "tensor")
    return unmet(
        *_common(site),
        (site.group == site.k, f"takes one scale per output channel, got groups of {site.group} along K={site.k}"),
        (site.symmetric or site.bits <= 6, f"takes no zero points of {site.bits}-bit weights: codes minus zeros must fit int8"),
        rounding_permitted(site),
        (site.activation.kind in kinds, f"does not know the activation rounding {site.activation.spec}"),
    )


def pack_qlinear(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(oneDNN's int8 [N, K], scales float32 [N], row sums of the weight float32 [N])."""
    codes = weight.codes if weight.zeros is None else weight.codes - weight.zeros
    scales = weight.scales.reshape(-1).to(torch.float32)
    sums = codes.to(torch.float32).sum(-1) * scales
    return (onednn.pack(codes), scales, sums)


def call_qlinear(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    """y = s * ((q - z) @ W.T) = s * (q @ W.T - z * sum_k W): rounding exactly as the site asks, then the integer product."""
    weight, scales, sums = packed
    rounding = TOKEN if site.activation.is_none else site.activation
    flat = extras.rows(x, site.k)
    codes, step, offset = rounding.codes(flat, extras.act_scale, extras.act_zero)
    product: Tensor = onednn.linear((codes.to(torch.float32) + 128).to(torch.uint8), weight, scales)
    if offset is not None:
        product = product - offset.to(torch.float32) * sums
    if rounding.kind == "tensor":  # of the other kinds, a NaN is in the step; as a code it would be some number
        product = product + codes.to(torch.float32).sum(-1, keepdim=True) * 0.0
    return _finished(product * step.to(torch.float32), extras, x, site)


def seconds_qlinear(site: Site, m: int, where: Platform) -> float:
    return predicted(where, site.n * site.k + 8.0 * site.n, 2.0 * m * site.n * site.k, m, QLINEAR_FACTORS, int8=True)


def _finished(y: Tensor, extras: Extras, x: Tensor, site: Site) -> Tensor:
    """y [M, N] with the bias, in the dtype and with the leading dimensions of x."""
    return extras.plus_bias(y).to(x.dtype).reshape((*x.shape[:-1], site.n))


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        name="torch.qlinear_int8",
        missing=missing_qlinear,
        refuses=refuses_qlinear,
        stored_bits=8,
        pack=pack_qlinear,
        call=call_qlinear,
        seconds=seconds_qlinear,
        default_activation=TOKEN,
    ),
    Kernel(
        name="torch.int4pack",
        missing=missing_int4,
        refuses=refuses_int4,
        pack=pack_int4,
        call=call_int4,
        seconds=seconds_int4,
        layout=layout,
    ),
    Kernel(
        name="torch.int8pack",
        missing=missing_int8,
        refuses=refuses_int8,
        stored_bits=8,
        pack=pack_int8,
        call=call_int8,
        seconds=seconds_int8,
        layout=layout,
    ),
)
