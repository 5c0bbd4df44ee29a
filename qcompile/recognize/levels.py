"""Keeps scales and offsets in 8 bits for each group, where that is exact: integers or floats, times floats for many groups."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from qcompile.meaning import BLOCK_SCALE_DTYPES, INNER_DTYPES
from qcompile.recognize.lattice import INTEGERS, Found, Weight
from qcompile.recognize.scales import Grid, Part, Scale, narrowest, parts_of

# Two roundings of float32, by which a quotient may differ from the product with an inverse.
_ROUNDED = 2.0**-22


def in_levels(weight: Weight, found: Found) -> Found:
    """The same finding with the levels that its tensors have; itself where there is one level, or no kernel for two."""
    if weight.dense.device.type != "cpu":
        return found
    if found.codebook:
        return replace(found, scale=_block_scales(weight, found.scale))
    if found.kind != INTEGERS:
        return found
    scale = _split(weight, found.scale)
    offset = found.offset
    if offset is not None and not offset.scaled:
        offset = replace(offset, level=_split(weight, offset.level))
    split = replace(found, scale=scale, offset=offset)
    return split if outer_group(split, weight.k) >= 0 else found


def outer_group(found: Found, k: int) -> int:
    """Values of K that share an outer scale: 0 for all of them; -1 where scales and offsets do not agree."""
    offset = None if found.offset is None else found.offset.level
    groups = {level.outer.group for level in (found.scale, offset) if level is not None and level.two_level}
    if len(groups) > 1:
        return -1
    group = groups.pop() if groups else k
    return group if group < k else 0


def stored(
    found: Found, of_scale: Sequence[Tensor], of_offset: Sequence[Tensor], scales: Tensor, shift: Tensor | None, n: int, k: int
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(scales, outer scales, offsets, outer offsets) from the tensors of the parts; scales, shift: of one level."""
    inner, outer = _levels(found.scale, of_scale, scales, n, k)
    if found.offset is None or shift is None:
        return inner, outer, None, None
    offsets, outer_offset = _levels(found.offset.level, of_offset, shift, n, k)
    if outer_offset is not None and found.offset.factor != 1.0:
        outer_offset = outer_offset * found.offset.factor
    return inner, outer, offsets, outer_offset


def _levels(scale: Scale, tensors: Sequence[Tensor], single: Tensor, n: int, k: int) -> tuple[Tensor, Tensor | None]:
    if scale.inner is None:
        return single, None
    if not scale.two_level:
        return single.to(scale.inner), None
    inner = Scale(scale.parts[:1], scale.group).values(tensors[:1], n, k, single.device)
    return inner.to(scale.inner), scale.outer.values(tensors[1:], n, k, single.device)


def _split(weight: Weight, scale: Scale) -> Scale:
    """The scale as integers times a coarser one with exactly the same values, if two of the candidates give it; else itself."""
    if not scale.parts:
        return scale
    grid = Grid(weight.n, weight.k, (scale.group,))
    values = _values(weight, scale)
    parts = list(parts_of(weight.tensors, grid))
    for whole, dtype in _integers(weight, parts, scale.group):
        integers = _values(weight, Scale((whole,), scale.group))
        for part in parts:
            coarse = part.group == weight.k or (part.group > scale.group and part.group % scale.group == 0)
            if not coarse or not weight.tensors[part.candidate].is_floating_point():
                continue
            if torch.equal(integers * _values(weight, Scale((part,), scale.group)), values):
                outer = replace(part, candidate=narrowest(weight.tensors, part.candidate))
                return Scale((whole, outer), scale.group, dtype)
    return scale


def _block_scales(weight: Weight, scale: Scale) -> Scale:
    """The scale in the 8 bits of E8M0 or E4M3 for each group, or so many times one float for each output; else itself."""
    if not scale.parts or scale.group == weight.k:
        return scale
    values = _values(weight, scale)
    for dtype in BLOCK_SCALE_DTYPES:
        if len(scale.parts) == 1 and scale.parts[0].rows == 1 and _fits(values, dtype):
            return replace(scale, inner=dtype)
    parts = list(parts_of(weight.tensors, Grid(weight.n, weight.k, (scale.group,))))
    coarse = [part for part in parts if part.group == weight.k and weight.tensors[part.candidate].is_floating_point()]
    fine = [part for part in parts if part.group == scale.group and weight.tensors[part.candidate].is_floating_point()]
    for part, dtype in product(fine, BLOCK_SCALE_DTYPES):
        inner = _values(weight, Scale((part,), scale.group))
        if not _fits(inner, dtype):
            continue
        for level, divides in product(coarse, (False, True)):
            outer = replace(level, divides=divides)
            both = inner * _values(weight, Scale((outer,), scale.group))
            if bool(((both - values).abs() <= values.abs() * _ROUNDED).all()):
                return Scale((part, outer), scale.group, dtype)
    return scale


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether a dtype of 8 bits holds exactly these numbers."""
    return torch.equal(values.to(dtype).to(torch.float32), values)


def _integers(weight: Weight, parts: Sequence[Part], group: int) -> Iterator[tuple[Part, torch.dtype]]:
    """The candidates that may be the inner level, and the dtype that holds them."""
    for part in parts:
        tensor = weight.tensors[part.candidate]
        integers = tensor.dtype in (*INNER_DTYPES, torch.int16, torch.int32, torch.int64)
        if part.group != group or not integers or not tensor.numel():
            continue
        low, high = (int(item) for item in torch.aminmax(tensor))
        if low >= 0 and high <= 255:
            yield part, torch.uint8
        elif low >= -128 and high <= 127:
            yield part, torch.int8


def _values(weight: Weight, scale: Scale) -> Tensor:
    """float32 [N, G], or of the rows that are given."""
    tensors = [weight.tensors[part.candidate] for part in scale.parts]
    return scale.values(tensors, weight.n, weight.k, weight.dense.device, weight.rows).to(torch.float32)
