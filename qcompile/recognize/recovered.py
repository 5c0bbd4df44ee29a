"""Reads a weight from its values alone: which tensors of its cone are tried as scales, and the proposal made of what was found."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from math import gcd

import torch
from torch import Tensor, fx

from qcompile.formats.proposal import Proposal
from qcompile.graph.nodes import Constant, aten, is_call, value
from qcompile.graph.slices import Root, Slices, spread
from qcompile.graph.walk import evaluate, subgraph
from qcompile.meaning import Operands, all_finite
from qcompile.recognize import lattice, levels, offsets, unread
from qcompile.recognize.products import CASTS, Product
from qcompile.recognize.scales import LEAST_GROUP

_MOST_CANDIDATES = 24
_MOST_ELEMENTS, _SPANS = 1 << 22, 16  # of a weight of more elements some rows are looked at, in so many places
_FEW = 4096
_MOST_OFFSETS = 6  # findings with offsets that are tried: beside scales that are far too large, many seem to fit

Dense = tuple[fx.Node, bool]  # a node that holds the weight, and whether as [K, N]


class Values:
    """The dense weight of a product and what it is computed from, by value; of a large one some rows, to hold little memory."""

    def __init__(self, product: Product, leaves: Sequence[fx.Node], constants: Mapping[fx.Node, Constant]) -> None:
        self.leaves = tuple(leaves)
        self.inner = subgraph([product.weight], set(leaves))
        self.sizes = _sizes(self.inner)
        self.literals = _literals(self.inner)
        self.feed = {leaf: constants[leaf].tensor for leaf in leaves}
        tensors = evaluate(_candidates(product, leaves), self.feed)
        dense, rows = _rows(product, (product.weight, product.transposed), self.feed)
        self.weight = lattice.Weight(dense, tensors, product.n, rows)
        self.product = product
        self.finite = all_finite(dense)

    def findings(self) -> Iterator[lattice.Found]:
        """How the dense weight lies on the lattice of its scales or in a code book: what is likely first, nothing if in no way."""
        if not self.finite:
            return
        search = offsets.Search(self._unrounded, self.sizes, self.literals)

        def added(few_bits: bool) -> Iterator[lattice.Found]:
            return islice(search.findings(few_bits), _MOST_OFFSETS)

        for plain in lattice.findings(self.weight, self.sizes, added):
            found = levels.in_levels(self.weight, plain)
            yield found
            if self.weight.rows is not None and not found.codebook:
                yield from _wider(found)
            if found != plain:
                yield plain

    def _unrounded(self) -> lattice.Weight:
        """The weight before it was rounded for the product."""
        root = _before_rounding(self.product)
        if root[0] is self.product.weight:
            return self.weight
        dense, rows = _rows(self.product, root, self.feed)
        return lattice.Weight(dense, self.weight.tensors, self.product.n, rows)

    def reason(self) -> str:
        """Why it does not, or cannot be served."""
        if not self.finite:
            return "its dense weight holds NaN or infinity"
        return unread.reason(self.weight, self.sizes, [*self.leaves, *self.inner], [self.feed[leaf] for leaf in self.leaves])


def _wider(found: lattice.Found) -> Iterator[lattice.Found]:
    """The same with more bits, or zero points: rows that were not looked at may need them."""
    if found.symmetric and found.bits < 8:
        yield replace(found, symmetric=False)
    for bits in (4, 8):
        if bits > found.bits:
            yield replace(found, bits=bits, symmetric=found.symmetric or bits == 8)


def _before_rounding(product: Product) -> Dense:
    """What the weight was cast from, if anything: beside a large offset, rounding to 16 bits may hide the codes."""
    node, transposed = found = product.weight, product.transposed
    while is_call(node, *CASTS, aten.permute.default) and value(node.all_input_nodes[0]).dtype.is_floating_point:
        if is_call(node, aten.permute.default):
            if list(node.args[1]) != [1, 0]:  # type: ignore[arg-type]
                break
            transposed = not transposed
        node = node.all_input_nodes[0]
        found = (node, transposed)
    return found


def _rows(product: Product, dense_of: Dense, feed: Mapping[fx.Node, Tensor]) -> tuple[Tensor, Tensor | None]:
    """The dense weight [N, K] that a node holds, or of a large one some rows and their numbers."""
    n, k, (root, transposed) = product.n, product.k, dense_of
    if n * k <= _MOST_ELEMENTS:
        (dense,) = evaluate([root], feed)
        return (dense.t() if transposed else dense), None
    slices = Slices([Root(root, {"n": 1 if transposed else 0})], {"n": n}, feed)
    each = max(1, _MOST_ELEMENTS // (_SPANS * k))
    spans = spread(n, each, _SPANS, slices.align("n"))
    parts = [slices.evaluate({"n": span})[0] for span in spans]
    numbers = torch.cat([torch.arange(span.start, span.stop, dtype=torch.int64, device="cpu") for span in spans])
    return torch.cat([part.t() if transposed else part for part in parts]), numbers


def _candidates(product: Product, leaves: Sequence[fx.Node]) -> list[fx.Node]:
    """Everything small that the weight is computed from, nearest first: a scale that was rounded on the way counts as rounded."""
    inner = subgraph([product.weight], set(leaves))
    small = [
        node
        for node in [*reversed(inner), *leaves]
        if isinstance(value(node), Tensor) and _is_small(value(node).numel(), product) and node is not product.weight
    ]
    return small[:_MOST_CANDIDATES]


def _is_small(elements: int, product: Product) -> bool:
    """Whether so many elements may be scales, or a group index; those of a tiny weight may be many."""
    return elements * LEAST_GROUP <= product.n * product.k or (elements <= _FEW and elements * 2 <= product.n * product.k)


def _sizes(nodes: Sequence[fx.Node]) -> frozenset[int]:
    """The numbers that the code mentions and the sizes of what it computes: a group size is among them."""
    numbers: set[int] = set()
    for node in nodes:
        numbers.update(item for item in node.args if type(item) is int)
        if isinstance(value(node), Tensor):
            numbers.update(size for size in value(node).shape if type(size) is int)
    return frozenset(number for number in numbers if number > 1)


def _literals(nodes: Sequence[fx.Node]) -> tuple[float, ...]:
    """The fractions that the code adds or subtracts: a zero point may be among them."""
    return tuple(dict.fromkeys(abs(item) for node in nodes for item in node.args if type(item) is float and item % 1))


def proposal(product: Product, leaves: Sequence[fx.Node], found: lattice.Found) -> tuple[Proposal, tuple[fx.Node, ...]]:
    """The proposal that divides the dense weight by what was found, and the nodes whose values its `unpack` takes."""
    candidates = _candidates(product, leaves)
    picked = [candidates[part.candidate] for part in found.scale.parts]
    count = len(picked)
    added = () if found.offset is None else found.offset.level.parts
    picked += [candidates[part.candidate] for part in added]
    picked += [candidates[found.index]] if found.index is not None else []
    dense_of = (product.weight, product.transposed) if found.offset is None else _before_rounding(product)
    transposed = dense_of[1]

    def unpack(tensors: Sequence[Tensor]) -> Operands:
        dense = tensors[0].t() if transposed else tensors[0]
        n, k = dense.shape
        of_scale, of_offset = tensors[1 : 1 + count], tensors[1 + count : 1 + count + len(added)]
        scales = found.scales(of_scale, n, k, dense.device)
        perm = torch.argsort(tensors[-1].long(), stable=True) if found.index is not None else None
        shift = None if found.offset is None else found.offset.values(of_offset, scales, n, k)
        codes, zeros = lattice.codes_and_zeros(dense, scales, found, perm, shift)
        inner, outer, offsets, outer_offset = levels.stored(found, of_scale, of_offset, scales, shift, n, k)
        return Operands(codes, inner, zeros, perm, outer=outer, offsets=offsets, outer_offset=outer_offset)

    made = Proposal(
        "dequantized in the graph",
        found.bits,
        found.scale.group,
        unpack,
        found.symmetric,
        found.index is not None,
        found.codebook,
        gcd(*(part.rows for part in found.scale.parts)) or product.n,
        found.offset is not None,
        levels.outer_group(found, product.k),
    )
    return made, (dense_of[0], *picked)
