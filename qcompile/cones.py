"""Reads the weight of a product: which reader's proposal, or which lattice, is proven to be what the graph computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.check import disagreement, prove
from qcompile.graph import Constant, evaluate, is_call, leaves_of, structural_key, subgraph, value
from qcompile.meaning import Operands
from qcompile.products import Product, low_bit_leaves
from qcompile.readers import Cone, Leaf, LeafIndex, Proposal, lattice, proposals


@dataclass(frozen=True, slots=True)
class Reading:
    """An accepted proposal. by_value: proven for these contents of the leaves only, so a change of them has to be checked again.

    inputs: nodes whose values `proposal.unpack` takes (the leaves, or for a lattice the dense weight and its scales)
    """

    proposal: Proposal
    reader: str
    by_value: bool
    inputs: tuple[fx.Node, ...]
    zero_range: tuple[int, int]
    scale_dtype: torch.dtype
    name: str = ""  # names the unpacking uniquely: reader, number and format of the proposal


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of a structure: reader and number of the proposal, or the lattice found."""

    reader: str
    ordinal: int
    found: lattice.Found | None
    by_value: bool
    zero_range: tuple[int, int] = (0, 0)
    scale_dtype: torch.dtype = torch.float32
    narrow: bool = False


_structures: dict[str, _Known] = {}  # proven for every content of the leaves
_weights: dict[tuple[Any, ...], _Known] = {}  # proven or checked for these contents


def forget() -> None:
    """Forget everything that was proven."""
    _structures.clear()
    _weights.clear()


class Reader:
    """Reads products of one graph. `read` returns a Reading, or the reason why nothing explains the weight."""

    def __init__(self, constants: dict[fx.Node, Constant]) -> None:
        self.constants = constants

    def read(self, product: Product) -> Reading | str:
        leaves = leaves_of(product.weight, self.constants)
        if not low_bit_leaves(leaves):
            return f"the weight is stored as {_dtypes(leaves)}, which is not quantized"
        key = structural_key([product.weight], leaves) + f"\ntransposed={product.transposed}"
        identity = (key, *(self.constants[leaf].identity for leaf in leaves))
        known = _weights.get(identity)
        if known is None:
            known = self._recall(product, leaves, key) or self._search(product, leaves, key)
            if isinstance(known, str):
                return known
            checked = self._check_values(product, leaves, known)
            if isinstance(checked, str):
                return checked
            known = checked
            _weights[identity] = known
        proposal, inputs = self._build(product, leaves, known)
        name = f"read.{known.reader}.{known.found or known.ordinal}"
        return Reading(proposal, known.reader, known.by_value, inputs, known.zero_range, known.scale_dtype, name)

    def _cone(self, product: Product, leaves: Sequence[fx.Node]) -> Cone:
        described = tuple(
            Leaf(self.constants[leaf].path, value(leaf).dtype, tuple(int(size) for size in value(leaf).shape)) for leaf in leaves
        )
        root = product.weight
        while is_call(root, torch.ops.aten.permute.default) and root.args[1] == [1, 0]:
            root = root.args[0]  # type: ignore[assignment]
        inner = subgraph([root], self.constants)
        if len(inner) == 1 and isinstance(root.target, torch._ops.OpOverload):
            names = [argument.name for argument in root.target._schema.arguments]
            given = {**dict(zip(names, root.args, strict=False)), **root.kwargs}
            index = {leaf: LeafIndex(number) for number, leaf in enumerate(leaves)}
            arguments = {name: index.get(item, item) if isinstance(item, fx.Node) else item for name, item in given.items()}
            return Cone(described, product.n, product.k, root.target, arguments)
        return Cone(described, product.n, product.k)

    def _dense(self, product: Product, leaves: Sequence[fx.Node]) -> Callable[[Sequence[Tensor]], Tensor]:
        def run(tensors: Sequence[Tensor]) -> Tensor:
            weight = evaluate([product.weight], dict(zip(leaves, tensors, strict=True)))[0]
            return weight.t() if product.transposed else weight  # type: ignore[no-any-return]

        return run

    def _recall(self, product: Product, leaves: Sequence[fx.Node], key: str) -> _Known | None:
        return _structures.get(key)

    def _search(self, product: Product, leaves: Sequence[fx.Node], key: str) -> _Known | str:
        tensors = [self.constants[leaf].tensor for leaf in leaves]
        dense = self._dense(product, leaves)
        accepted: _Known | None = None
        for ordinal, (reader, proposal) in enumerate(proposals(self._cone(product, leaves))):
            try:
                wrong, general = prove(dense, proposal, tensors, product.k)
            except Exception:  # a proposal that does not even fit the shapes
                continue
            if wrong is None and general:
                accepted = _Known(reader, ordinal, None, by_value=False)
                break
            if wrong is None and accepted is None:
                accepted = _Known(reader, ordinal, None, by_value=True)
        if accepted is not None:
            if not accepted.by_value:
                _structures[key] = accepted
            return accepted
        return self._lattice(product, leaves)

    def _lattice(self, product: Product, leaves: Sequence[fx.Node]) -> _Known | str:
        candidates = self._scale_candidates(product, leaves)
        feed = {leaf: self.constants[leaf].tensor for leaf in leaves}
        weight, *scales = evaluate([product.weight, *candidates], feed)
        dense = weight.t() if product.transposed else weight
        if not bool(torch.isfinite(dense).all()):
            return "its dense weight holds NaN or infinity"
        found = lattice.find(dense, scales)
        return found if isinstance(found, str) else _Known("lattice", 0, found, by_value=True)

    def _scale_candidates(self, product: Product, leaves: Sequence[fx.Node]) -> list[fx.Node]:
        """Everything small that the weight is computed from: leaves and intermediate results."""
        inner = subgraph([product.weight], self.constants)
        small = [
            node
            for node in [*leaves, *inner]
            if isinstance(value(node), Tensor) and value(node).numel() * 2 <= product.n * product.k and node is not product.weight
        ]
        return small[:24]

    def _build(self, product: Product, leaves: Sequence[fx.Node], known: _Known) -> tuple[Proposal, tuple[fx.Node, ...]]:
        """The proposal and its inputs, made again from what is remembered."""
        if known.found is not None:
            return self._lattice_proposal(product, leaves, known.found)
        for ordinal, (_, proposal) in enumerate(proposals(self._cone(product, leaves))):
            if ordinal == known.ordinal:
                return (_narrowed(proposal) if known.narrow else proposal), tuple(leaves)
        raise AssertionError("a reader proposes fewer readings than before")

    def _lattice_proposal(
        self, product: Product, leaves: Sequence[fx.Node], found: lattice.Found
    ) -> tuple[Proposal, tuple[fx.Node, ...]]:
        candidates = self._scale_candidates(product, leaves)
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

        proposal = Proposal(
            "dequantized in the graph", found.bits, found.group, unpack, found.symmetric, found.index is not None
        )
        return proposal, (product.weight, *picked)

    def _check_values(self, product: Product, leaves: Sequence[fx.Node], known: _Known) -> _Known | str:
        """What may differ between two weights of one structure: the scales' health, the zero points' range, unused bits."""
        proposal, inputs = self._build(product, leaves, known)
        feed = {leaf: self.constants[leaf].tensor for leaf in leaves}
        operands = proposal.unpack(evaluate(inputs, feed))
        if not bool(torch.isfinite(operands.scales).all()):
            return "its scales hold NaN or infinity"
        if known.found is not None:
            dense = evaluate([product.weight], feed)[0]
            wrong = disagreement(dense.t() if product.transposed else dense, operands, proposal.group, "")
            if wrong is not None:
                return f"close to a lattice, but not on it: {wrong}"
        most = 1 << proposal.bits
        span = (0, 0)
        if operands.zeros is not None and operands.zeros.numel():
            span = (int(operands.zeros.min()), int(operands.zeros.max()))
            if proposal.bits < 8 and (span[0] < 0 or span[1] > most):
                return f"its zero points {span[0]} .. {span[1]} are outside 0 .. {most}"
        narrow = known.found is None and _fits_four_bits(operands, proposal)
        return _Known(known.reader, known.ordinal, known.found, known.by_value or narrow, span, operands.scales.dtype, narrow)


def _fits_four_bits(operands: Operands, proposal: Proposal) -> bool:
    """Whether an 8-bit container holds 4-bit codes (own code often stores int4 in int8)."""
    if proposal.bits != 8 or proposal.codebook or operands.zeros is not None or operands.codes.numel() == 0:
        return False
    low, high = torch.aminmax(operands.codes)
    return int(low) >= -8 and int(high) <= 7


def _narrowed(proposal: Proposal) -> Proposal:
    return Proposal(proposal.format, 4, proposal.group, proposal.unpack, proposal.symmetric, proposal.act_order, proposal.codebook)


def _dtypes(leaves: Sequence[fx.Node]) -> str:
    return ", ".join(sorted({str(value(leaf).dtype).removeprefix("torch.") for leaf in leaves})) or "nothing"
