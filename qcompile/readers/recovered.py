"""Reads a weight from its values alone: which tensors of its cone are tried as scales, and the proposal made of what was found."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx

from qcompile.graph import Constant, evaluate, subgraph, value
from qcompile.meaning import Operands, all_finite
from qcompile.products import Product
from qcompile.readers import Proposal, lattice, unread

_MOST_CANDIDATES = 24


class Values:
    """The dense weight of a product and what it is computed from, by value."""

    def __init__(self, product: Product, leaves: Sequence[fx.Node], constants: Mapping[fx.Node, Constant]) -> None:
        self.leaves = tuple(leaves)
        self.inner = subgraph([product.weight], set(leaves))
        self.sizes = _sizes(self.inner)
        self.feed = {leaf: constants[leaf].tensor for leaf in leaves}
        weight, *tensors = evaluate([product.weight, *_candidates(product, leaves)], self.feed)
        self.weight = lattice.Weight(weight.t() if product.transposed else weight, tensors)
        self.finite = all_finite(weight)

    def findings(self) -> Iterator[lattice.Found]:
        """How the dense weight lies on the lattice of its scales or in a code book: what is likely first, nothing if in no way."""
        return lattice.findings(self.weight, self.sizes) if self.finite else iter(())

    def reason(self) -> str:
        """Why it does not, or cannot be served."""
        if not self.finite:
            return "its dense weight holds NaN or infinity"
        return unread.reason(self.weight, self.sizes, [*self.leaves, *self.inner], [self.feed[leaf] for leaf in self.leaves])


def _candidates(product: Product, leaves: Sequence[fx.Node]) -> list[fx.Node]:
    """Everything small that the weight is computed from, nearest first: a scale that was rounded on the way counts as rounded."""
    inner = subgraph([product.weight], set(leaves))
    small = [
        node
        for node in [*reversed(inner), *leaves]
        if isinstance(value(node), Tensor) and value(node).numel() * 2 <= product.n * product.k and node is not product.weight
    ]
    return small[:_MOST_CANDIDATES]


def _sizes(nodes: Sequence[fx.Node]) -> frozenset[int]:
    """The numbers that the code mentions and the sizes of what it computes: a group size is among them."""
    numbers: set[int] = set()
    for node in nodes:
        numbers.update(item for item in node.args if type(item) is int)
        if isinstance(value(node), Tensor):
            numbers.update(size for size in value(node).shape if type(size) is int)
    return frozenset(number for number in numbers if number > 1)


def proposal(product: Product, leaves: Sequence[fx.Node], found: lattice.Found) -> tuple[Proposal, tuple[fx.Node, ...]]:
    """The proposal that divides the dense weight by what was found, and the nodes whose values its `unpack` takes."""
    candidates = _candidates(product, leaves)
    picked = [candidates[part.candidate] for part in found.scale.parts]
    count = len(picked)
    picked += [candidates[found.index]] if found.index is not None else []
    transposed = product.transposed

    def unpack(tensors: Sequence[Tensor]) -> Operands:
        dense = tensors[0].t() if transposed else tensors[0]
        scales = found.scales(tensors[1 : 1 + count], dense)
        perm = torch.argsort(tensors[-1].long(), stable=True) if found.index is not None else None
        codes, zeros = lattice.codes_and_zeros(dense, scales, found, perm)
        return Operands(codes, scales, zeros, perm)

    made = Proposal(
        "dequantized in the graph",
        found.bits,
        found.scale.group,
        unpack,
        found.symmetric,
        found.index is not None,
        found.codebook,
    )
    return made, (product.weight, *picked)
