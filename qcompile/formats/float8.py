"""Proposes readings of weights of numbers of 8 bits, E4M3 or E5M2, [N, K] or [K, N], with scales of any usual shape or none."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.codebooks import NUMBERS
from qcompile.formats.leaves import FLOATS, grids, indices
from qcompile.formats.proposal import Cone, Leaf, Proposal
from qcompile.meaning import BLOCK_SCALE_DTYPES, Operands, group_count

_BYTES = (torch.uint8, torch.int8)
# Sizes of blocks along N and K that share a scale, where the counts alone do not tell.
_BLOCKS = (128, 64, 32, 256, 16, 512)

Read = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Where the numbers lie: `transposed` for [K, N]; kind: a name in codebooks.NUMBERS."""

    index: int
    transposed: bool
    kind: str

    def codes(self, leaves: Sequence[Tensor]) -> Tensor:
        found = leaves[self.index].view(torch.int8)
        return found.t() if self.transposed else found


@dataclass(frozen=True, slots=True)
class Scales:
    """One leaf read as [N, G]; rows: outputs that share their scales."""

    index: int
    group: int
    read: Read
    rows: int


def propose(cone: Cone) -> Iterator[Proposal]:
    """Every matrix of such numbers with every leaf that may be its scales, as factors and as divisors; then without scales."""
    stored = list(_matrices(cone))
    scales = list(_scales(cone)) if stored else []
    for numbers in stored:
        for found in scales:
            if found.index != numbers.index:
                yield _proposal(cone, numbers, found, divides=False)
                yield _proposal(cone, numbers, found, divides=True)
    for numbers in stored:  # the scale may stand behind the product
        yield _proposal(cone, numbers, None, divides=False)


def _matrices(cone: Cone) -> Iterator[Numbers]:
    for index, leaf in enumerate(cone.leaves):
        kinds = [name for name, dtype in NUMBERS.items() if leaf.dtype in (dtype, *_BYTES)]
        for kind in kinds:
            if leaf.shape == (cone.n, cone.k):
                yield Numbers(index, False, kind)
            if leaf.shape == (cone.k, cone.n):
                yield Numbers(index, True, kind)


def _scales(cone: Cone) -> Iterator[Scales]:
    for index in indices(cone, _may_be_scales):
        leaf = cone.leaves[index]
        for kept in _kept(leaf):
            for groups, read in grids(leaf.shape, cone.n, cone.k):
                rows = cone.n if leaf.shape.count(1) == len(leaf.shape) else 1
                yield Scales(index, cone.k // groups, _then(kept, read), rows)
            yield from _blocks(cone, index, kept)


def _may_be_scales(leaf: Leaf) -> bool:
    return leaf.dtype in FLOATS or leaf.dtype in BLOCK_SCALE_DTYPES or leaf.dtype is torch.uint8


def _kept(leaf: Leaf) -> list[Read]:
    """As which numbers code may take them: bytes as the exponents of E8M0, float32 also rounded to 16 bits."""
    if leaf.dtype is torch.uint8:
        return [lambda tensor: tensor.view(torch.float8_e8m0fnu)]
    rounded: list[Read] = [lambda tensor: tensor.to(torch.bfloat16), lambda tensor: tensor.to(torch.float16)]
    return [lambda tensor: tensor, *(rounded if leaf.dtype is torch.float32 else ())]


def _then(first: Read, second: Read) -> Read:
    return lambda tensor: second(first(tensor))


def _blocks(cone: Cone, index: int, kept: Read) -> Iterator[Scales]:
    """Scales [ceil(N / rows), ceil(K / group)], or with N and K changed about."""
    shape = cone.leaves[index].shape
    if len(shape) != 2:
        return
    for turned, (along_n, along_k) in ((False, shape), (True, shape[::-1])):
        for rows in _sizes(cone.n, along_n):
            for group in _sizes(cone.k, along_k):
                if rows > 1:
                    yield Scales(index, group, _then(kept, _expanded(rows, cone.n, turned)), rows)


def _sizes(total: int, count: int) -> list[int]:
    """Sizes of blocks of which `count` cover `total`."""
    whole = [total // count] if count and total % count == 0 else []
    return list(dict.fromkeys([*whole, *(size for size in _BLOCKS if group_count(total, size) == count and size < total)]))


def _expanded(rows: int, n: int, turned: bool) -> Read:
    return lambda tensor: (tensor.t() if turned else tensor).repeat_interleave(rows, 0)[:n]


def _proposal(cone: Cone, numbers: Numbers, scales: Scales | None, *, divides: bool) -> Proposal:
    n = cone.n

    def unpack(leaves: Sequence[Tensor]) -> Operands:
        codes = numbers.codes(leaves)
        if scales is None:
            return Operands(codes, torch.ones((n, 1), dtype=torch.float32, device=codes.device))
        factors = scales.read(leaves[scales.index])
        return Operands(codes, 1.0 / factors.to(torch.float32) if divides else factors)

    return Proposal(
        format=f"plain {numbers.kind}",
        bits=8,
        group=cone.k if scales is None else scales.group,
        unpack=unpack,
        codebook=numbers.kind,
        rows=cone.n if scales is None else scales.rows,
    )
