"""Ways to write the rounding of a linear's input to NVFP4, MXFP4 and MXFP8 in a model's own code, and what only looks like one."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from support.float8_spellings import E4M3, E8M0
from support.spellings import F32
from torch import Tensor

Codes = Callable[[Tensor], Tensor]
Scales = Callable[[Any, Tensor], Tensor]
Round = Callable[[Any, Tensor], Tensor]
SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


# To the nearest value of E2M1, ties to the even code.


def by_table(x: Tensor) -> Tensor:
    """The nearest of eight sizes; of two that are as near the one with the even index."""
    table = torch.tensor(SIZES)
    distance = (x.abs().clamp(max=6.0)[..., None] - table).abs()
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    return table[order][distance[..., order].argmin(-1)] * x.sign()


def by_bucketize(x: Tensor) -> Tensor:
    size, middles = x.abs(), torch.tensor(MIDDLES)
    low, high = torch.bucketize(size, middles), torch.bucketize(size, middles, right=True)
    index = torch.where(high % 2 == 0, high, low)
    return torch.copysign(torch.tensor(SIZES)[index], x)


def by_comparisons(x: Tensor) -> Tensor:
    size = x.abs()
    code = (size > 0.25).int() + (size >= 0.75) + (size > 1.25) + (size >= 1.75) + (size > 2.5) + (size >= 3.5) + (size > 5.0)
    return torch.tensor(SIZES)[code] * torch.sign(x)


def by_exponent_bits(x: Tensor) -> Tensor:
    """As many steps as the number's own exponent has: half of a power of two, at least a half."""
    size = x.abs().clamp(max=6.0)
    power = (size.view(torch.int32) & 0x7F800000).view(F32).clamp(1.0, 4.0)
    return torch.round(size / (power / 2)) * (power / 2) * x.sign()


def by_library(x: Tensor) -> Tensor:
    """As compressed-tensors writes it."""
    sign, size = torch.sign(x), torch.abs(x)
    size[(size >= 0.0) & (size <= 0.25)] = 0.0
    size[(size > 0.25) & (size < 0.75)] = 0.5
    size[(size >= 0.75) & (size <= 1.25)] = 1.0
    size[(size > 1.25) & (size < 1.75)] = 1.5
    size[(size >= 1.75) & (size <= 2.5)] = 2.0
    size[(size > 2.5) & (size < 3.5)] = 3.0
    size[(size >= 3.5) & (size <= 5.0)] = 4.0
    size[size > 5.0] = 6.0
    return size * sign


# Scales of NVFP4, from the largest size of a group.


def divided(m: Any, most: Tensor) -> Tensor:
    block = (most / 6.0 * m.g).clamp(max=448.0).to(E4M3).float()
    return torch.where(block == 0, 0.125, block) / m.g


def multiplied(m: Any, most: Tensor) -> Tensor:
    """The global scale as ModelOpt keeps it."""
    block = (most / (6.0 * m.inverse)).clamp(max=448.0).to(E4M3).float()
    return torch.where(block == 0, 1.0, block) * m.inverse


def inverted(m: Any, most: Tensor) -> Tensor:
    overall = 1.0 / m.inverse
    block = (overall * (most / 6.0)).clamp(-448.0, 448.0).to(E4M3).float()
    return torch.where(block == 0, 0.125, block) / overall


# Scales of MXFP4 and MXFP8: powers of two, rounded up from 1.75 on.


def by_mask(offset: int) -> Scales:
    def scales(_: Any, most: Tensor) -> Tensor:
        power = ((most.view(torch.int32) + (1 << 21)) & 0x7F800000).view(F32)
        return torch.clamp(power * 2.0**-offset, min=2.0**-127)

    return scales


def by_logarithm(offset: int) -> Scales:
    def scales(_: Any, most: Tensor) -> Tensor:
        exponent = torch.floor(torch.log2(most)).clamp(min=-126)
        exponent = exponent + (most >= 1.75 * torch.exp2(exponent)).float()
        return torch.clamp(torch.exp2(exponent) * 2.0**-offset, min=2.0**-127)

    return scales


def by_e8m0(offset: int) -> Scales:
    def scales(m: Any, most: Tensor) -> Tensor:
        return by_mask(offset)(m, most).to(E8M0).float()

    return scales


def rounds(group: int, scales: Scales, codes: Codes, maximum: Codes | None = None) -> Round:
    def run(m: Any, x: Tensor) -> Tensor:
        grouped = x.float().unflatten(-1, (-1, group))
        step = scales(m, grouped.abs().amax(-1, keepdim=True) if maximum is None else maximum(grouped))
        return (codes(grouped / step) * step).flatten(-2).to(x.dtype)

    return run


def library(preset: str) -> Round:
    """compressed-tensors' own `fake_quantize`, in the dtype of x."""
    quantization: Any = import_module("compressed_tensors.quantization")
    forward: Any = import_module("compressed_tensors.quantization.lifecycle.forward")
    helpers: Any = import_module("compressed_tensors.quantization.utils.helpers")
    args = quantization.preset_name_to_scheme(preset, ["Linear"]).input_activations

    def run(m: Any, x: Tensor) -> Tensor:
        overall = m.g if preset == "NVFP4" else None
        step, zero = helpers.compute_dynamic_scales_and_zp(value=x, args=args, module=None, global_scale=overall)
        found: Tensor = forward.fake_quantize(x, step, zero, args, global_scale=overall)
        return found

    return run


def to_e4m3(x: Tensor) -> Tensor:
    return x.clamp(-448, 448).to(E4M3).float()


def _max_of_dim(grouped: Tensor) -> Tensor:
    return grouped.abs().max(-1, keepdim=True).values


# Words of the report, and how it is written.
ROUNDINGS: dict[str, tuple[str, Callable[[], Round]]] = {
    "nvfp4, table": ("a4 nvfp4", lambda: rounds(16, divided, by_table)),
    "nvfp4, bucketize": ("a4 nvfp4", lambda: rounds(16, divided, by_bucketize)),
    "nvfp4, comparisons": ("a4 nvfp4", lambda: rounds(16, divided, by_comparisons)),
    "nvfp4, exponent bits": ("a4 nvfp4", lambda: rounds(16, divided, by_exponent_bits)),
    "nvfp4, masks": ("a4 nvfp4", lambda: rounds(16, divided, by_library)),
    "nvfp4, largest with its place": ("a4 nvfp4", lambda: rounds(16, divided, by_bucketize, _max_of_dim)),
    "nvfp4, inverted multiplier": ("a4 nvfp4", lambda: rounds(16, inverted, by_bucketize)),
    "nvfp4, the library": ("a4 nvfp4", lambda: library("NVFP4")),
    "mxfp4, table": ("a4 mxfp4", lambda: rounds(32, by_mask(2), by_table)),
    "mxfp4, bucketize": ("a4 mxfp4", lambda: rounds(32, by_logarithm(2), by_bucketize)),
    "mxfp4, comparisons": ("a4 mxfp4", lambda: rounds(32, by_e8m0(2), by_comparisons)),
    "mxfp4, exponent bits": ("a4 mxfp4", lambda: rounds(32, by_mask(2), by_exponent_bits)),
    "mxfp4, masks": ("a4 mxfp4", lambda: rounds(32, by_logarithm(2), by_library)),
    "mxfp4, the library": ("a4 mxfp4", lambda: library("MXFP4")),
    "mxfp8, mask": ("a8 mxfp8", lambda: rounds(32, by_mask(8), to_e4m3)),
    "mxfp8, logarithm": ("a8 mxfp8", lambda: rounds(32, by_logarithm(8), to_e4m3)),
    "mxfp8, the library": ("a8 mxfp8", lambda: library("MXFP8")),
}


# What is nearly such a rounding.


def _away(x: Tensor) -> Tensor:
    return torch.copysign(torch.tensor(SIZES)[torch.bucketize(x.abs(), torch.tensor(MIDDLES), right=True)], x)


def _down(x: Tensor) -> Tensor:
    return torch.copysign(torch.tensor(SIZES)[torch.bucketize(x.abs(), torch.tensor(MIDDLES))], x)


def _another_table(x: Tensor) -> Tensor:
    return torch.copysign(torch.tensor((*SIZES[:7], 5.0))[torch.bucketize(x.abs(), torch.tensor((*MIDDLES[:6], 4.5)))], x)


def _unclamped(x: Tensor) -> Tensor:
    size = x.abs()
    power = torch.exp2(torch.floor(torch.log2(size.clamp(min=1.0))))
    return torch.copysign(torch.round(size / (power / 2)) * (power / 2), x)


def _table_without_clamp(x: Tensor) -> Tensor:
    """Of infinity no size is the nearest."""
    table, order = torch.tensor(SIZES), torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    return table[order][(x.abs()[..., None] - table[order]).abs().argmin(-1)] * x.sign()


def _block(m: Any, block: Tensor) -> Tensor:
    return torch.where(block == 0, 0.125, block) / m.g


def _powers(change: Codes) -> Scales:
    return lambda _, most: torch.exp2((change(torch.log2(most)) - 2).clamp(min=-127.0))


def _some_tokens(m: Any, x: Tensor) -> Tensor:
    """The last token is not rounded."""
    last = torch.arange(x.shape[0])[:, None] == x.shape[0] - 1
    return torch.where(last, x, rounds(16, divided, by_bucketize)(m, x))


def _own_global(_: Any, most: Tensor) -> Tensor:
    """The global scale is that of the input at hand."""
    overall = 2688.0 / most.amax().clamp(min=1e-6)
    return (most / 6.0 * overall).clamp(max=448.0).to(E4M3).float().clamp(min=2.0**-9) / overall


LOOK_ALIKES: dict[str, Round] = {
    "halfway away from zero": rounds(16, divided, _away),
    "halfway towards zero": rounds(32, by_mask(2), _down),
    "another divisor": rounds(16, lambda m, most: _block(m, to_e4m3(most / 6.5 * m.g)), by_bucketize),
    "nearly the same divisor": rounds(16, lambda m, most: _block(m, to_e4m3(most / 6.002 * m.g)), by_bucketize),
    "another group, nvfp4": rounds(32, divided, by_bucketize),
    "another group, mxfp4": rounds(16, by_mask(2), by_bucketize),
    "scales in bfloat16": rounds(
        16, lambda m, most: _block(m, (most / 6.0 * m.g).clamp(max=448.0).bfloat16().float()), by_bucketize
    ),
    "scales in E5M2": rounds(
        16, lambda m, most: _block(m, (most / 6.0 * m.g).clamp(max=448.0).to(torch.float8_e5m2).float()), by_bucketize
    ),
    "scales with another limit": rounds(
        16, lambda m, most: _block(m, (most / 6.0 * m.g).clamp(max=240.0).to(E4M3).float()), by_bucketize
    ),
    "scales of at least the least": rounds(16, lambda m, most: to_e4m3(most / 6.0 * m.g).clamp(min=2.0**-9) / m.g, by_bucketize),
    "zeros make NaN": rounds(16, lambda m, most: to_e4m3(most / 6.0 * m.g) / m.g, by_exponent_bits),
    "signed largest": rounds(16, divided, by_bucketize, lambda grouped: grouped.amax(-1, keepdim=True)),
    "its own global scale": rounds(16, _own_global, by_bucketize),
    "not the last token": _some_tokens,
    "another table": rounds(16, divided, _another_table),
    "infinity has no nearest": rounds(16, divided, _table_without_clamp),
    "exponent rounded down": rounds(32, _powers(torch.floor), by_bucketize),
    "exponent rounded down, no limit": rounds(32, _powers(torch.floor), _unclamped),
    "exponent rounded up": rounds(32, _powers(torch.ceil), by_bucketize),
    "exponent rounded": rounds(32, _powers(torch.round), by_bucketize),
    "up from 1.5 on": rounds(
        32,
        lambda _, most: (((most.view(torch.int32) + (1 << 22)) & 0x7F800000).view(F32) / 4).clamp(min=2.0**-127),
        by_bucketize,
    ),
    "mxfp8 without its limit": rounds(32, lambda m, most: by_mask(8)(m, most) / 2, lambda q: q.to(E4M3).float()),
}
