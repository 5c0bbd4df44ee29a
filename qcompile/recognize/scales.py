"""How the tensors of a cone may lie as scales of a weight [N, K]: alone, as inverses, and as products or quotients of two."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice, product
from math import gcd

import torch
from torch import Tensor

from qcompile.meaning import SCALE_DTYPES, group_count

# Scales of finer groups would take more memory than the dense weight in 16 bits.
LEAST_GROUP = 4
_MOST_SHORT = 3
_MOST_SINGLES = 96
_MOST_SEVERAL = 160


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a scale, seen as [ceil(N / rows), ceil(K / group)]: an entry for so many rows and values of K.

    candidate: its number; turned: it lies transposed; divides: the weight is divided by it. Where `group` does not divide K, or
    `rows` not N, the last one is short.
    """

    candidate: int
    turned: bool
    rows: int
    group: int
    divides: bool = False


def common_group(k: int, *groups: int) -> int:
    """The group in which scales of all these can be written: one that divides K, or where that is too fine, one that does not."""
    even = gcd(k, *groups)
    if even >= min(LEAST_GROUP, k):
        return even
    return gcd(*(group for group in groups if group < k)) or k


@dataclass(frozen=True, slots=True)
class Scale:
    """What the codes are multiplied with: the product of the parts (1 without any), constant over `group` values of K.

    inner: None, or the dtype of 8 bits that holds the first part: integers or floats as the inner of two levels, or floats alone
    """

    parts: tuple[Part, ...]
    group: int
    inner: torch.dtype | None = None

    @staticmethod
    def of(k: int, *parts: Part) -> "Scale":
        return Scale(parts, common_group(k, *(part.group for part in parts)))

    @property
    def two_level(self) -> bool:
        return self.inner is not None and len(self.parts) > 1

    @property
    def outer(self) -> "Scale":
        """Of two levels the outer one, in its own groups."""
        return Scale(self.parts[1:], min(part.group for part in self.parts[1:]))

    def values(self, tensors: Sequence[Tensor], n: int, k: int, device: torch.device, rows: Tensor | None = None) -> Tensor:
        """[N, ceil(K / group)], for all rows or some; in the dtype of the one tensor that it consists of, else in float32."""
        result: Tensor | None = None
        for part, tensor in zip(self.parts, tensors, strict=True):
            factor = _arranged(tensor, part, n, k, self.group, rows)
            if part.divides:
                result = (1.0 if result is None else result) / factor.to(torch.float32)
            else:
                result = factor if result is None else result.to(torch.float32) * factor.to(torch.float32)
        if result is None:
            return torch.ones((n if rows is None else rows.numel(), group_count(k, self.group)), dtype=torch.float32, device=device)
        return result if result.dtype in SCALE_DTYPES else result.to(torch.float32)


def _arranged(tensor: Tensor, part: Part, n: int, k: int, group: int, rows: Tensor | None) -> Tensor:
    """The part as [N, ceil(K / group)], or some rows, in its own dtype; group divides the part's group, if that is not K."""
    high, wide, groups = group_count(n, part.rows), group_count(k, part.group), group_count(k, group)
    grid = tensor.reshape(wide, high).t() if part.turned else tensor.reshape(high, wide)
    if rows is not None:
        n = rows.numel()
        grid = grid[rows // part.rows]
    if grid.dtype not in SCALE_DTYPES:
        grid = grid.to(torch.float32)
    if high == 1:
        grid = grid.expand(n, wide)
    elif part.rows > 1 and rows is None:
        grid = grid.repeat_interleave(part.rows, 0)[:n]
    if wide == 1:
        return grid.expand(n, groups)
    return grid if part.group == group else grid.repeat_interleave(part.group // group, 1)[:, :groups]


@dataclass(frozen=True, slots=True)
class Offset:
    """What is added to every weight of a group: `factor` times the level's parts, times the weight's own scale if `scaled`.

    A zero point z that is no integer is added as -1 * z * scale.
    """

    level: Scale
    factor: float
    scaled: bool

    def values(self, tensors: Sequence[Tensor], scales: Tensor, n: int, k: int, rows: Tensor | None = None) -> Tensor:
        """[N, ceil(K / group)], or some rows, from the tensors of the level's parts and the scales [N, ceil(K / group)]."""
        level = self.level.values(tensors, n, k, scales.device, rows)
        if self.factor == 1.0 and not self.scaled:
            return level
        wide = level.to(torch.float32) * self.factor
        return wide * scales.to(torch.float32) if self.scaled else wide


@dataclass(frozen=True, slots=True)
class Grid:
    """A weight's [N, K] as scales have to fit it.

    sizes: numbers that the code mentions; of groups that do not divide K only such and powers of two are thought of
    least: the finest group that scales may be written in
    """

    n: int
    k: int
    sizes: Collection[int] = ()
    least: int = LEAST_GROUP

    def takes(self, group: int) -> bool:
        return group >= min(self.least, self.k)


def ways(shape: Sequence[int], grid: Grid) -> list[tuple[bool, int, int]]:
    """(turned, rows, group) of every way in which a tensor of this shape may be a scale of the weight, likely ones first."""
    n, k = grid.n, grid.k
    lengths = [size for size in shape if size != 1]
    if 0 in lengths:
        return []
    found: list[tuple[bool, int, int]] = []
    if not lengths:
        found = [(False, n, k)]
    elif len(lengths) == 1:
        found += [(False, rows, k) for rows in group_sizes(lengths[0], n, grid.sizes)]
        found += [(False, n, group) for group in group_sizes(lengths[0], k, grid.sizes)]
    elif len(lengths) == 2:
        for turned, (high, wide) in ((False, lengths), (True, lengths[::-1])):
            rows_of = group_sizes(high, n, grid.sizes)
            found += [(turned, rows, group) for rows in rows_of for group in group_sizes(wide, k, grid.sizes)]
    usable = [way for way in found if grid.takes(common_group(k, way[2]))]
    return sorted(usable, key=lambda way: (way[1] != 1, k % way[2] != 0, n % way[1] != 0))


def group_sizes(count: int, k: int, sizes: Collection[int] = ()) -> list[int]:
    """Group sizes with which `count` groups cover K; where the last one is short, only those that `ways` thinks of."""
    even = [k // count] if k % count == 0 else []
    if count < 2:
        return even
    least, most = k // count + 1, (k - 1) // (count - 1)
    powers = {1 << exponent for exponent in range(2, 16)}
    short = sorted((size for size in powers | set(sizes) if least <= size <= most), key=lambda size: (size not in sizes, size))
    return even + short[:_MOST_SHORT]


def singles(candidates: Sequence[Tensor], grid: Grid) -> list[Scale]:
    """Every float candidate as the scale, in the narrowest dtype that holds it, and last no scale at all."""
    parts = [part for part in parts_of(candidates, grid) if candidates[part.candidate].is_floating_point()]
    narrow = {number: narrowest(candidates, number) for number in {part.candidate for part in parts}}
    found = dict.fromkeys(Scale.of(grid.k, replace(part, candidate=narrow[part.candidate])) for part in parts)
    return [*list(found)[:_MOST_SINGLES], Scale((), grid.k)]


def narrowest(candidates: Sequence[Tensor], number: int) -> int:
    """The candidate that this one is a wider copy of, or itself: kernels keep 16-bit scales as they are."""
    mine = candidates[number]
    for other, tensor in enumerate(candidates):
        narrower = mine.element_size() > 2 and tensor.dtype in (torch.float16, torch.bfloat16)
        if narrower and _lengths(tensor) == _lengths(mine) and torch.equal(tensor.reshape(-1).to(mine.dtype), mine.reshape(-1)):
            return other
    return number


def _lengths(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def further(candidates: Sequence[Tensor], grid: Grid) -> list[Scale]:
    """Inverses of float candidates, integers as scales, products and quotients of two, and products of two and a single number."""
    different = _different(candidates)
    parts = [part for part in parts_of(candidates, grid) if part.candidate in different]
    floats = [part for part in parts if candidates[part.candidate].is_floating_point()]
    whole = [part for part in parts if not candidates[part.candidate].is_floating_point()]
    numbers = [part for part in floats if candidates[part.candidate].numel() == 1]
    inverse = [_inverse(part) for part in floats]
    alone = [(part,) for part in chain(inverse, whole)][:_MOST_SINGLES]
    factors = list(combinations(floats + whole, 2))
    quotients = [(left, _inverse(right)) for left, right in product(parts, parts)]
    inverses = [(_inverse(left), _inverse(right)) for left, right in factors]
    triples = [(left, right, number) for left, right in factors for number in numbers]
    several = (chosen for chosen in chain(factors, quotients, inverses, triples) if _apart(chosen, grid))
    return [Scale.of(grid.k, *chosen) for chosen in chain(alone, islice(several, _MOST_SEVERAL))]


def _apart(chosen: Sequence[Part], grid: Grid) -> bool:
    """Whether these are different candidates that fit one another."""
    numbers = {part.candidate for part in chosen}
    return len(numbers) == len(chosen) and grid.takes(common_group(grid.k, *(part.group for part in chosen)))


def parts_of(candidates: Sequence[Tensor], grid: Grid) -> Iterator[Part]:
    """Every way in which each of the candidates may be a scale."""
    for number, candidate in enumerate(candidates):
        for turned, rows, group in ways(candidate.shape, grid):
            yield Part(number, turned, rows, group)


def _inverse(part: Part) -> Part:
    return replace(part, divides=True)


def _different(candidates: Sequence[Tensor]) -> set[int]:
    """Numbers of the candidates that are no cast or view of an earlier one; tensors without arithmetic are left out."""
    seen: list[Tensor] = []
    kept: set[int] = set()
    for number, candidate in enumerate(candidates):
        if candidate.dtype is torch.bool or candidate.is_complex():
            continue
        flat = candidate.reshape(-1).to(torch.float32)
        if not any(torch.equal(flat, other) for other in seen):
            seen.append(flat)
            kept.add(number)
    return kept
