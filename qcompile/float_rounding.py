"""How activations are rounded to small floats: NVFP4, MXFP4, MXFP8, FP8. compressed-tensors 0.20 gives the same, bit by bit.

Scales are dynamic, from the values of x themselves, unless it says static. Steps are in the dtype in which x is given here.

    nvfp4      groups of 16 of K, E2M1: t = max|x| / 6; from here on in float32, with the static global scale g: block scale
               b = E4M3(clamp(g * t, +-448)), 0.125 where that is 0; s = b / g; q = E2M1(clamp(x / s, +-6)); x' = q * s
    mxfp4      groups of 32, E2M1: s = 2^(e - 2) with 2^e <= max|x| < 1.75 * 2^e, or 0.875 * 2^e <= max|x| < 2^e; exponents from
               -127 to 128; 1 where s is 0 in the dtype; q = E2M1(clamp(x / s, +-6)); x' = q * s
    mxfp8      the same with E4M3: s = 2^(e - 8), clamp to +-448
    fp8_token  the whole of K, E4M3: s = max|x| / 448, or the dtype's epsilon where that is 0; q = E4M3(clamp(x / s, +-448));
               x' = q * s
    fp8_group  the same for groups of 128
    fp8_tensor the same with one static scale s

Rounding to E2M1 and E4M3 is to nearest, ties to even. A group with infinity is NaN as a whole, except where the scale is bounded:
with nvfp4 infinity becomes 6 * 448 / g, with fp8_tensor 448 * s. A group with NaN is NaN as a whole, except those of mxfp4 and
mxfp8, where s is then the least of all, and that of fp8_tensor: there only NaN itself stays NaN.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FP4_MOST, FP8_MOST = 6.0, 448.0
LEAST_BLOCK_SCALE = 0.125  # of E4M3, in place of 0


@dataclass(frozen=True, slots=True)
class FloatKind:
    """group: values of K that share a scale, 0 for all of them; number: the native operator's name for the kind."""

    group: int
    number: int
    static: bool = False


FLOAT_KINDS = {
    "nvfp4": FloatKind(16, 0, static=True),
    "mxfp4": FloatKind(32, 1),
    "mxfp8": FloatKind(32, 2),
    "fp8_token": FloatKind(0, 3),
    "fp8_group": FloatKind(128, 4),
    "fp8_tensor": FloatKind(0, 5, static=True),
}


def rounded(x: Tensor, kind: str, scale: Tensor | None) -> Tensor:
    """x' [..., K] in the dtype of x; K is a multiple of the kind's group. scale: of the static kinds, one element."""
    size = FLOAT_KINDS[kind].group or max(x.shape[-1], 1)
    grouped = x.unflatten(-1, (-1, size))
    if kind == "fp8_tensor":
        assert scale is not None
        codes, step = _fp8(grouped, scale.reshape(1))
    elif kind == "nvfp4":
        assert scale is not None
        codes, step = _nvfp4(grouped, scale.to(torch.float32).reshape(1))
    elif kind in ("mxfp4", "mxfp8"):
        step = _power_of_two(_largest(grouped), 2 if kind == "mxfp4" else 8)
        quotient = grouped / step + 0.0
        codes = e2m1(quotient) if kind == "mxfp4" else e4m3(quotient)
    else:
        step = _largest(grouped) / FP8_MOST
        codes, step = _fp8(grouped, torch.where(step == 0, torch.full_like(step, torch.finfo(x.dtype).eps), step))
    return (codes * step).flatten(-2).to(x.dtype)


def _largest(grouped: Tensor) -> Tensor:
    return grouped.abs().amax(-1, keepdim=True)


def _fp8(grouped: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return e4m3(grouped / step + 0.0).to(step.dtype), step


def _nvfp4(grouped: Tensor, overall: Tensor) -> tuple[Tensor, Tensor]:
    block = e4m3((_largest(grouped) / FP4_MOST).to(torch.float32) * overall)
    step = torch.where(block == 0, torch.full_like(block, LEAST_BLOCK_SCALE), block) / overall
    return e2m1(grouped.to(torch.float32) / step + 0.0), step


def _power_of_two(largest: Tensor, offset: int) -> Tensor:
    """The scale of a group of microscaling numbers, in the dtype of `largest`."""
    # A quarter is added to the mantissa's bits, which carries into the exponent from 1.75 on.
    if largest.dtype is torch.float16:
        field = ((largest.view(torch.int16).to(torch.int32) + (1 << 8)) & 0x7C00) >> 10
        field = torch.where(field == 31, 255, torch.where(field == 0, 0, field + 112))
    else:
        field = ((largest.to(torch.float32).view(torch.int32) + (1 << 21)) & 0x7F800000) >> 23
    stored = torch.where(field == 255, 255, (field - offset).clamp(min=0))
    stored = torch.where(largest.isnan(), 0, stored)  # as a conversion of NaN to a byte gives it
    # 2^(stored - 127): 0 is a subnormal number, 255 infinity.
    scale = torch.where(stored == 0, 0x00400000, stored << 23).view(torch.float32).to(largest.dtype)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def e2m1(x: Tensor) -> Tensor:
    """The nearest value of E2M1, ties to the even code, in the dtype of x; from -6 to 6, NaN stays."""
    size = x.abs().clamp(max=FP4_MOST)
    step = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0)).to(x.dtype)
    return torch.copysign(torch.round(size / step) * step, x)


def e4m3(x: Tensor) -> Tensor:
    """The nearest value of E4M3, ties to even, in the dtype of x; from -448 to 448, NaN stays."""
    return x.clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn).to(x.dtype)
