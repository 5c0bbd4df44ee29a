"""Random weights of integer codes with zero points, offsets and scales of one or two levels, and what they are in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.kernel import inner_bits
from qcompile.meaning import QuantizedWeight

# Dtype of scales and offsets; for integers also their bits and the dtype of the outer ones.
LEVELS: dict[str, tuple[torch.dtype, int, torch.dtype]] = {
    "f32": (torch.float32, 0, torch.float32),
    "bf16": (torch.bfloat16, 0, torch.float32),
    "fp16": (torch.float16, 0, torch.float32),
    "u4 fp16": (torch.uint8, 4, torch.float16),
    "u6 fp16": (torch.uint8, 6, torch.float16),
    "i6 f32": (torch.int8, 6, torch.float32),
    "i8 bf16": (torch.int8, 8, torch.bfloat16),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """levels: a key of LEVELS; outer_group: values of K of an outer scale, 0 for one for each output (of integers alone)."""

    bits: int
    levels: str = "f32"
    zeros: bool = False
    offsets: bool = False
    outer_group: int = 0


def made(n: int, k: int, group: int, kind: Kind, seed: int = 0) -> QuantizedWeight:
    """Codes, zero points and integer scales over their whole range."""
    generator = torch.Generator().manual_seed(n * k + seed)
    dtype, width, outer_dtype = LEVELS[kind.levels]
    groups, bits = -(-k // group), kind.bits

    def whole(least: int, count: int, shape: tuple[int, int], of: torch.dtype = torch.int8) -> Tensor:
        return torch.randint(least, least + count, shape, generator=generator).to(of)

    def level(sign: float) -> tuple[Tensor, Tensor | None]:
        if not width:
            return ((torch.rand(n, groups, generator=generator) + 0.5) * sign).to(dtype), None
        outers = -(-k // kind.outer_group) if kind.outer_group else 1
        least = -(1 << (width - 1)) if dtype is torch.int8 else 0
        outer = ((torch.rand(n, outers, generator=generator) + 0.5) * sign * 2.0**-width).to(outer_dtype)
        return whole(least, 1 << width, (n, groups), dtype), outer

    least = -(1 << (bits - 1)) if bits == 8 or not (kind.zeros or kind.offsets) else 0
    codes = whole(least, 1 << bits, (n, k))
    zeros = whole(least, min((1 << bits) + (bits < 7), 256), (n, groups)) if kind.zeros else None
    scales, outer = level(1.0)
    offsets, outer_offset = level(-1.0) if kind.offsets else (None, None)
    outer_group = kind.outer_group if width else 0
    return QuantizedWeight(codes, scales, zeros, bits, group, None, "", outer, offsets, outer_offset, outer_group)


def packed(weight: QuantizedWeight) -> Tensor:
    """The weight as the operator packs it."""
    given = (weight.codes, weight.scales, weight.zeros, weight.offsets, weight.outer, weight.outer_offset)
    outer_group, inner = weight.outer_group or weight.k, inner_bits(weight.scales, weight.offsets)
    made: Tensor = torch.ops.qcompile.native_planes_pack(*given, weight.bits, weight.group, outer_group, inner)
    return made


def product(
    weight: QuantizedWeight,
    x: Tensor,
    perm: Tensor | None = None,
    bias: Tensor | None = None,
    level: int = -1,
    of: Tensor | None = None,
) -> Tensor:
    """x times the packed weight (or what was packed before)."""
    bytes_ = packed(weight) if of is None else of
    y: Tensor = torch.ops.qcompile.native_planes_linear(
        x, bytes_, perm, bias, weight.n, weight.k, weight.group, weight.bits, level=level
    )
    return y


def parts(weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """(W, the size of the terms that it is computed from) in float64 [N, K], by the formula, value by value."""
    column = torch.arange(weight.k)
    g = column // weight.group
    h = column // weight.outer_group if weight.outer_group else column * 0
    value = weight.codes.double()
    zero = torch.zeros_like(value) if weight.zeros is None else weight.zeros.double()[:, g]
    scale, offset = weight.scales.double()[:, g], torch.zeros_like(value)
    if weight.outer is not None:
        scale = scale * weight.outer.double()[:, h]
    if weight.offsets is not None:
        offset = weight.offsets.double()[:, g]
        offset = offset if weight.outer_offset is None else offset * weight.outer_offset.double()[:, h]
    terms = (value.abs() + zero.abs() + (1 << (weight.bits - 1))) * scale.abs() + offset.abs()
    return (value - zero) * scale + offset, terms


def error(y: Tensor, x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> float:
    """The difference from float64, relative (L2) to the result, or where that cancels to less, to the norm of its terms."""
    dense, terms = parts(weight)
    wanted = x.double() @ dense.t()
    if bias is not None:
        wanted = wanted + bias.double()
    if wanted.numel() == 0:
        return 0.0
    size = max(float(wanted.norm()), float((x.double().abs() @ terms.t()).norm()) / weight.k**0.5, 1e-30)
    return float((y.double() - wanted).norm()) / size
