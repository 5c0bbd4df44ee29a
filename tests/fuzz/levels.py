"""Random offsets and scales of two levels for a weight that has neither."""

from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from fuzz import contents
from qcompile.meaning import QuantizedWeight, group_count


def with_levels(rng: Random, weight: QuantizedWeight) -> QuantizedWeight:
    """The same codes with offsets, with scales (and offsets) that are integers times outer ones, or both."""
    n, k, group = weight.n, weight.k, weight.group
    offset, two = rng.choice(((True, False), (False, True), (True, True)))
    codes = weight.codes
    if offset and weight.zeros is None and weight.bits < 8:
        codes = codes + (1 << (weight.bits - 1))
    outer_group = rng.choice((0, 0, *(group * times for times in (1, 2, 4, 8) if group * times <= k)))
    dtype, width = rng.choice((torch.uint8, torch.int8)), rng.choice((4, 6, 8))
    outer_dtype = rng.choice(contents.FLOATS)

    def level() -> tuple[Tensor, Tensor | None]:
        if not two:
            return contents.scales(rng, tuple(weight.scales.shape), weight.scales.dtype, "usual")[0], None
        low = -(1 << (width - 1)) if dtype is torch.int8 else 0
        inner = contents.codes(rng, tuple(weight.scales.shape), low, low + (1 << width), torch.int16).to(dtype)
        outers = group_count(k, outer_group) if outer_group else 1
        return inner, contents.scales(rng, (n, outers), outer_dtype, "usual")[0]

    scales, outer = (weight.scales, None) if not two else level()
    offsets, outer_offset = level() if offset else (None, None)
    return replace(
        weight,
        codes=codes,
        scales=scales,
        outer=outer,
        offsets=offsets,
        outer_offset=outer_offset,
        outer_group=outer_group if two else 0,
    )
