"""Reads a weight from its values alone: which tensors of its cone are tried as scales, and the proposal made of what was found."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from qcompile.graph import Constant, evaluate, subgraph, value
from qcompile.meaning import Operands, all_finite
from qcompile.products import Product
from qcompile.readers import Proposal, lattice, unread

_MOST_CANDIDATES = 24


def find(product: Product, leaves: Sequence[fx.Node], constants: Mapping[fx.Node, Constant]) -> lattice.Found | str:
    """How the dense weight lies on the lattice of one of its scales or in a code book, or why in no way that can be served."""
    candidates = _candidates(product, leaves)
    feed = {leaf: constants[leaf].tensor for leaf in leaves}
    weight, *tensors = evaluate([product.weight, *candidates], feed)
    dense = weight.t() if product.transposed else weight
    if not all_finite(dense):
        return "its dense weight holds NaN or infinity"
    inner = subgraph([product.weight], set(leaves))
    sizes = _sizes(inner)
    read = lattice.Weight(dense, tensors)
    return lattice.find(read, sizes) or unread.reason(read, sizes, [*leaves, *inner], [feed[leaf] for leaf in leaves])


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
