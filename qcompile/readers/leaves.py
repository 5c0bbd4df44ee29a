"""Which leaves of a cone may be scales, zero points or group indices, judged by dtype and shape alone."""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from qcompile.readers import Cone, Leaf

INTEGERS = frozenset({torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64})
FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})


def indices(cone: Cone, fits: Callable[[Leaf], bool]) -> list[int]:
    """Positions of the leaves that fit."""
    return [index for index, leaf in enumerate(cone.leaves) if fits(leaf)]


def grids(shape: tuple[int, ...], n: int, k: int) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
    """Every (G, tensor -> [N, G]) in which a tensor of that shape may hold one value per output channel and group of K.

    One value; [N]; [N, G]; [G, N]; each with any dimensions of size one in between. Square ones come both ways round.
    """
    sizes = tuple(size for size in shape if size != 1)
    if not sizes:
        yield 1, lambda t: t.reshape(1, 1).expand(n, 1)
    elif len(sizes) == 1:
        if sizes[0] == n:
            yield 1, lambda t: t.reshape(n, 1)
        elif n == 1 and k % sizes[0] == 0:
            yield sizes[0], lambda t: t.reshape(1, sizes[0])
    elif len(sizes) == 2:
        if sizes[0] == n and k % sizes[1] == 0:
            yield sizes[1], lambda t: t.reshape(n, sizes[1])
        if sizes[1] == n and k % sizes[0] == 0:
            yield sizes[0], lambda t: t.reshape(sizes[0], n).t()


def scale_grids(cone: Cone) -> Iterator[tuple[int, int, Callable[[Tensor], Tensor]]]:
    """(leaf position, G, tensor -> [N, G]) for every float leaf that may be the scales."""
    for index in indices(cone, lambda leaf: leaf.dtype in FLOATS):
        for groups, read in grids(cone.leaves[index].shape, cone.n, cone.k):
            yield index, groups, read


def group_indices(cone: Cone) -> list[int | None]:
    """None first (columns in order), then the leaves that may be g_idx: integers [K]."""
    found = indices(cone, lambda leaf: leaf.dtype in {torch.int32, torch.int64} and leaf.shape == (cone.k,))
    return [None, *found]


def combinations(*choices: list[int | None]) -> Iterator[tuple[int | None, ...]]:
    """All combinations in which no leaf is used twice."""
    for picked in product(*choices):
        used = [index for index in picked if index is not None]
        if len(used) == len(set(used)):
            yield picked
