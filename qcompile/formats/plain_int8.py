"""Proposes readings of weights stored one byte per value, [N, K] or [K, N], with scales of any usual shape."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.formats.layouts import signed
from qcompile.formats.leaves import INTEGERS, grids, indices, scale_grids
from qcompile.formats.proposal import Cone, Proposal
from qcompile.meaning import Operands

# What code may subtract from unsigned bytes without any zero-point leaf: nothing, 128, or 8 (four bits in a byte).
UNSIGNED_OFFSETS = (128, 8, 0)

Read = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Bytes:
    """Where the codes lie and how to turn them: `transposed` for [K, N], `unsigned` for uint8."""

    index: int
    transposed: bool
    unsigned: bool

    def codes(self, leaves: Sequence[Tensor], offset: int) -> Tensor:
        found = leaves[self.index].t() if self.transposed else leaves[self.index]
        return (found.to(torch.int16) - offset).to(torch.int8) if self.unsigned else found


def propose(cone: Cone) -> Iterator[Proposal]:
    """Every byte matrix with every scale leaf, first without zero points, then with every zero-point leaf that fits."""
    stored = list(_matrices(cone))
    scales = list(scale_grids(cone))
    for matrix in stored:
        for position, groups, read in scales:
            group = cone.k // groups
            for offset in UNSIGNED_OFFSETS if matrix.unsigned else (0,):
                yield _proposal(matrix, position, read, group, offset)
            for zero, read_zero in _zeros(cone, matrix.index, position, groups):
                yield _proposal(matrix, position, read, group, 128, (zero, read_zero))
    for matrix in stored:  # the scale may stand behind the product
        for offset in UNSIGNED_OFFSETS if matrix.unsigned else (0,):
            yield _unscaled(matrix, cone.n, cone.k, offset)


def _unscaled(matrix: Bytes, n: int, k: int, offset: int) -> Proposal:
    constant = matrix.unsigned and offset == 0

    def unpack(leaves: Sequence[Tensor]) -> Operands:
        ones = torch.ones((n, 1), dtype=torch.float32, device=leaves[matrix.index].device)
        if constant:
            return Operands(matrix.codes(leaves, 128), ones, torch.full((n, 1), -128, dtype=torch.int8, device=ones.device))
        return Operands(matrix.codes(leaves, offset), ones)

    return Proposal("plain uint8" if matrix.unsigned else "plain int8", bits=8, group=k, unpack=unpack, symmetric=not constant)


def _matrices(cone: Cone) -> Iterator[Bytes]:
    for index, leaf in enumerate(cone.leaves):
        if leaf.dtype in {torch.int8, torch.uint8}:
            unsigned = leaf.dtype == torch.uint8
            if leaf.shape == (cone.n, cone.k):
                yield Bytes(index, False, unsigned)
            if leaf.shape == (cone.k, cone.n):
                yield Bytes(index, True, unsigned)


def _zeros(cone: Cone, matrix: int, scales: int, groups: int) -> Iterator[tuple[int, Read]]:
    """Integer or float leaves of the scales' grid, or one value per channel or for the tensor, widened to [N, G]."""
    for index in indices(cone, lambda leaf: leaf.dtype in INTEGERS or leaf.dtype.is_floating_point):
        if index in {matrix, scales}:
            continue
        for found, read in grids(cone.leaves[index].shape, cone.n, cone.k):
            if found in {1, groups}:
                yield index, _widened(read, cone.n, groups)


def _widened(read: Read, n: int, groups: int) -> Read:
    return lambda tensor: read(tensor).expand(n, groups)


def _proposal(matrix: Bytes, scales: int, read: Read, group: int, offset: int, zeros: tuple[int, Read] | None = None) -> Proposal:
    constant = matrix.unsigned and zeros is None and offset == 0

    def unpack(leaves: Sequence[Tensor]) -> Operands:
        factors = read(leaves[scales])
        if zeros is not None:
            points = zeros[1](leaves[zeros[0]])
            points = signed(points, 8) if matrix.unsigned else points.to(torch.int8)
            return Operands(matrix.codes(leaves, 128), factors, points)
        if constant:
            return Operands(matrix.codes(leaves, 128), factors, torch.full_like(factors, -128, dtype=torch.int8))
        return Operands(matrix.codes(leaves, offset), factors)

    return Proposal(
        format="plain uint8" if matrix.unsigned else "plain int8",
        bits=8,
        group=group,
        unpack=unpack,
        symmetric=zeros is None and not constant,
    )
