"""Which leaves of a cone may be scales, zero points or group indices, judged by dtype and shape alone."""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from qcompile.formats.proposal import Cone, Leaf

INTEGERS = frozenset({torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64})
FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})
_STORED = "float64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
STORED_FLOATS = frozenset(getattr(torch, name) for name in _STORED.split() if hasattr(torch, name))


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
    """(leaf position, G, tensor -> [N, G]) for every float leaf that may be the scales; float32 for what they cannot stay in."""
    for index in indices(cone, lambda leaf: leaf.dtype in FLOATS or leaf.dtype in STORED_FLOATS):
        for groups, read in grids(cone.leaves[index].shape, cone.n, cone.k):
            yield index, groups, read if cone.leaves[index].dtype in FLOATS else _widened(read)


def _widened(read: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: read(tensor).to(torch.float32)


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
