"""Random canonical weights, and the float32 reference of a linear that uses one."""

import math

import torch
from torch import Tensor

from qcompile.activations import NO_ACTIVATION_QUANT, ActivationQuant
from qcompile.meaning import QuantizedWeight, sqnr_db


def random_weight(
    n: int,
    k: int,
    group: int = 0,
    *,
    bits: int = 4,
    symmetric: bool = True,
    act_order: bool = False,
    scale_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> QuantizedWeight:
    """Codes over the whole range, scales of about 0.001 to 0.011; zero points of narrow weights up to 2^bits. group 0: K."""
    generator = torch.Generator().manual_seed(seed)
    groups = k // (group or k)
    signed = symmetric or bits == 8
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    codes = torch.randint(low, high, (n, k), dtype=torch.int8, generator=generator)
    scales = (torch.rand(n, groups, generator=generator) * 0.01 + 0.001).to(scale_dtype)
    zeros = None if symmetric else torch.randint(low, high + (bits < 8), (n, groups), dtype=torch.int8, generator=generator)
    perm = torch.randperm(k, generator=generator) if act_order else None
    return QuantizedWeight(codes, scales, zeros, bits=bits, group=group or k, perm=perm)


def reference(
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None = None,
    activation: ActivationQuant = NO_ACTIVATION_QUANT,
    act_scale: Tensor | None = None,
    act_zero: Tensor | None = None,
) -> Tensor:
    """act(x) @ W.T + bias in float32."""
    rounded = activation.apply(x.to(torch.float32), act_scale, act_zero)
    return torch.nn.functional.linear(rounded, weight.dequantize(), None if bias is None else bias.to(torch.float32))


def agreement_db(expected: Tensor, y: Tensor, x: Tensor, weight: QuantizedWeight) -> float:
    """SQNR of y in dB. Of fewer than 256 values the signal is what it is on average, sum x^2 W^2: one alone may cancel out."""
    if y.numel() >= 256:
        return sqnr_db(expected, y)
    energy = float((x.double().square() @ weight.dequantize(torch.float64).square().t()).sum())
    energy = max(energy, float(expected.double().square().sum()))
    noise = float((expected.double() - y.double()).square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(energy / noise) if math.isfinite(noise) and energy > 0 else math.nan
