"""Reads a weight from its values alone: which tensors of its cone are tried as scales, and the proposal made of what was found."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from qcompile.graph import Constant, evaluate, subgraph, value
from qcompile.meaning import Operands
from qcompile.products import Product
from qcompile.readers import Proposal, lattice


def find(product: Product, leaves: Sequence[fx.Node], constants: Mapping[fx.Node, Constant]) -> lattice.Found | str:
    """How the dense weight lies on the lattice of one of its scales, or why on none."""
    candidates = _candidates(product, leaves)
    feed = {leaf: constants[leaf].tensor for leaf in leaves}
    weight, *scales = evaluate([product.weight, *candidates], feed)
    dense = weight.t() if product.transposed else weight
    if not bool(torch.isfinite(dense).all()):
        return "its dense weight holds NaN or infinity"
    return lattice.find(dense, scales)


def _candidates(product: Product, leaves: Sequence[fx.Node]) -> list[fx.Node]:
    """Everything small that the weight is computed from: leaves and intermediate results."""
    inner = subgraph([product.weight], set(leaves))
    small = [
        node
        for node in [*leaves, *inner]
        if isinstance(value(node), Tensor) and value(node).numel() * 2 <= product.n * product.k and node is not product.weight
    ]
    return small[:24]


def proposal(product: Product, leaves: Sequence[fx.Node], found: lattice.Found) -> tuple[Proposal, tuple[fx.Node, ...]]:
    """The proposal that divides the dense weight by what was found, and the nodes whose values its `unpack` takes."""
    candidates = _candidates(product, leaves)
    picked = [candidates[found.candidate]] if found.candidate < len(candidates) else []
    picked += [candidates[found.index]] if found.index is not None else []
    n, k, transposed = product.n, product.k, product.transposed

    def unpack(tensors: Sequence[Tensor]) -> Operands:
        dense = tensors[0].t() if transposed else tensors[0]
        raw = dense if found.layout == "unit" else tensors[1]
        scales = lattice.arrange(raw, found.layout, n, k, found.group)
        perm = torch.argsort(tensors[-1].long(), stable=True) if found.index is not None else None
        codes, zeros = lattice.codes_and_zeros(dense, scales, found.group, found.symmetric, perm)
        return Operands(codes, scales, None if found.symmetric else zeros, perm)

    made = Proposal("dequantized in the graph", found.bits, found.group, unpack, found.symmetric, found.index is not None)
    return made, (product.weight, *picked)
