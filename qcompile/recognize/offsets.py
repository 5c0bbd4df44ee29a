"""Finds the tensor that is added to every weight of a group: less it, and divided by its scales, the weight is integers.

What is found here is only a guess, as everything in `lattice`: it is compared with what the graph computes, exactly.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from qcompile.meaning import all_finite, in_groups, row_pieces
from qcompile.recognize.lattice import INTEGERS, NARROW, Found, Weight, one_thread
from qcompile.recognize.scales import Grid, Offset, Scale, common_group, further, singles

# By how much what is an integer may look off on average (of noise: 0.29): weights are rounded to 16 bits.
_OFF_SEEN, _OFF_USUALLY = 0.24, 0.2  # at first sight, with two of them; then alone
_LEAST_GROUP = 8  # of fewer values some are integers by chance
_MOST_SCALES, _MOST_LEVELS = 64, 32
_WIDTHS = (*NARROW, 5, 6, 7)


class Search:
    """The ways in which the weight lies on a lattice with offsets; literals: numbers that may be everybody's zero point."""

    def __init__(self, weight: Callable[[], Weight], sizes: Collection[int] = (), literals: Sequence[float] = ()) -> None:
        self._weight, self.sizes, self.literals = weight, sizes, literals

    def findings(self, narrow: bool) -> Iterator[Found]:
        """Those of four bits or fewer, or of more."""
        for guess in self._near:
            found = _fitted(self.weight, guess, None) if (guess.bits <= NARROW[-1]) == narrow else None
            if found is not None:
                yield found

    @cached_property
    def weight(self) -> Weight:
        """Made when it is first looked at."""
        return self._weight()

    @cached_property
    def _near(self) -> list[Found]:
        """What fits a few of the rows."""
        weight = self.weight
        grid = Grid(weight.n, weight.k, self.sizes, _LEAST_GROUP)
        with one_thread():
            tried = [*singles(weight.tensors, grid), *further(weight.tensors, grid)]
            levels = _levels(tried, weight.k, self.literals)
            return [found for scale in islice(_scaled(tried), _MOST_SCALES) for found in _near(weight, scale, levels)]


def _scaled(tried: Iterable[Scale]) -> Iterator[Scale]:
    return (scale for scale in tried if scale.parts)


def _levels(tried: Sequence[Scale], k: int, literals: Sequence[float]) -> list[Offset]:
    """What may be added, likely ones first: a tensor, or a zero point times the scale; of either sign."""
    some = [level for level in _scaled(tried) if not any(part.divides for part in level.parts)][:_MOST_LEVELS]
    plain = [Offset(level, sign, False) for level in some for sign in (1.0, -1.0)]
    points = [Offset(level, sign, True) for level in some if len(level.parts) == 1 for sign in (-1.0, 1.0)]
    numbers = [Offset(Scale((), k), sign * number, True) for number in literals for sign in (-1.0, 1.0)]
    return [*plain, *points, *numbers]


def _near(weight: Weight, scale: Scale, levels: Sequence[Offset]) -> Iterator[Found]:
    """What fits a few of the rows."""
    seen: dict[int, bool] = {}
    for offset in levels:
        if not offset.scaled and {part.candidate for part in offset.level.parts} == {part.candidate for part in scale.parts}:
            continue  # the weight's own scale once more
        group = common_group(weight.k, scale.group, offset.level.group)
        if group < _LEAST_GROUP:
            continue
        if group not in seen:
            seen[group] = _whole_up_to_an_offset(weight, scale, group)
        if not seen[group]:
            continue
        level = replace(offset.level, group=group)
        guess = Found(replace(scale, group=group), INTEGERS, 8, True, None, replace(offset, level=level))
        few = _fitted(weight, guess, weight.sampled[:1])
        found = None if few is None else _fitted(weight, guess, weight.sampled)
        if found is not None:
            yield found


def _tensors(weight: Weight, scale: Scale) -> list[Tensor]:
    return [weight.tensors[part.candidate] for part in scale.parts]


def _divided(weight: Weight, guess: Found, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(scales, offsets) of the weight's rows that have these numbers, each [rows, G]; zeros among scales become ones."""
    taken = weight.rows if rows is None else rows
    scales = guess.scales(_tensors(weight, guess.scale), weight.n, weight.k, weight.dense.device, taken).to(torch.float32)
    offsets = None
    if guess.offset is not None:
        offsets = guess.offset.values(_tensors(weight, guess.offset.level), scales, weight.n, weight.k, taken).to(torch.float32)
    return torch.where(scales == 0, torch.ones_like(scales), scales), offsets


def _whole_up_to_an_offset(weight: Weight, scale: Scale, group: int) -> bool:
    """Whether the first row, divided by the scale, is integers up to an offset of each group."""
    scales, _ = _divided(weight, Found(replace(scale, group=group), INTEGERS, 8, True), weight.sampled[:1])
    if not all_finite(scales):
        return False
    steps = in_groups(weight.sample[:1], group) / scales.unsqueeze(-1)
    moved = steps - steps.amin(-1, keepdim=True)
    return _off(moved) < _OFF_SEEN and 1 <= float(moved.max()) < 256.5


def _off(steps: Tensor) -> float:
    """How far these are from integers, on average; NaN if one is."""
    return float((steps - torch.round(steps)).square().mean().sqrt())


def _fitted(weight: Weight, guess: Found, rows: Tensor | None) -> Found | None:
    """The guess with the bits that the given rows (None: all there are) need; None if they are no integers."""
    scales, offsets = _divided(weight, guess, rows)
    assert offsets is not None
    if not all_finite(scales) or not all_finite(offsets):
        return None
    low, high = 0, 0
    dense = weight.dense if rows is None else weight.sample[: rows.numel()]
    for piece in row_pieces(dense.shape[0], weight.k):
        grouped = in_groups(dense[piece].to(torch.float32), guess.scale.group)
        steps = (grouped - offsets[piece].unsqueeze(-1)) / scales[piece].unsqueeze(-1)
        if not _off(steps) < _OFF_USUALLY:
            return None
        low, high = min(low, int(torch.round(steps.min()))), max(high, int(torch.round(steps.max())))
        if high - low > 255:
            return None
    return _of_width(guess, low, high)


def _of_width(guess: Found, low: int, high: int) -> Found | None:
    """The fewest bits: unsigned, or around a zero point in the middle; with 8 bits signed."""
    for bits in _WIDTHS:
        half = 1 << (bits - 1)
        if low >= 0 and high < 2 * half:
            return replace(guess, bits=bits, symmetric=True)
        if low >= -half and high < half:
            return replace(guess, bits=bits, symmetric=False)
    return replace(guess, bits=8, symmetric=low < 0) if low >= 0 or (low >= -128 and high <= 127) else None
