"""Reads the weight of a product: which reader's proposal, or which lattice, is proven to be what the graph computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.check import disagreement, in_range, is_fixed, prove
from qcompile.frontends.ops import dequantize_packed
from qcompile.graph import Constant, evaluate, is_call, leaves_of, structural_key, subgraph, value
from qcompile.meaning import Operands, all_finite
from qcompile.products import Product, low_bit_leaves
from qcompile.readers import Cone, Leaf, LeafIndex, Proposal, lattice, proposals, recovered
from qcompile.tighten import fits_four_bits, four_bits, in_order, is_in_order
from qcompile.watch import Leaves


@dataclass(frozen=True, slots=True)
class Reading:
    """An accepted proposal.

    inputs: nodes whose values `proposal.unpack` takes (the leaves, or for a lattice the dense weight and its scales)
    """

    proposal: Proposal
    reader: str
    inputs: tuple[fx.Node, ...]
    zero_range: tuple[int, int]
    scale_dtype: torch.dtype
    key: str  # equal for readings that unpack leaves of equal shapes in the same way


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of a structure: reader and number of the proposal, or the lattice found.

    by_value: only a guess for other weights of the structure, to be checked for each. narrow, straight: as in qcompile.tighten.
    """

    reader: str
    ordinal: int
    found: lattice.Found | None
    by_value: bool
    zero_range: tuple[int, int] = (0, 0)
    scale_dtype: torch.dtype = torch.float32
    narrow: bool = False
    straight: bool = False


_structures: dict[str, _Known] = {}  # the reading that fitted last; proven for every content of the leaves unless by_value
_weights: dict[tuple[Any, ...], tuple[_Known, Leaves]] = {}  # proven or checked for these contents


def forget() -> None:
    """Forget what was proven, except of weights that are released and so cannot be read again."""
    _structures.clear()
    for identity in [identity for identity, (_, leaves) in _weights.items() if not leaves.released]:
        del _weights[identity]


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
        mine = [self.constants[leaf] for leaf in leaves]
        known, seen = _weights.get(identity, (None, None))
        if known is None or seen is None or not seen.same(mine):
            guess = _structures.get(key)
            checked = "" if guess is None else self._check_quickly(product, leaves, guess)
            if isinstance(checked, str):
                found = self._search(product, leaves)
                checked = found if isinstance(found, str) else self._check_values(product, leaves, found)
            if isinstance(checked, str):
                return checked
            known = checked
            _structures[key] = replace(known, narrow=False, straight=False)
            _weights[identity] = known, Leaves(mine)
        proposal, inputs = self._build(product, leaves, known)
        unpacking = f"{known.reader} {known.ordinal} {known.found} {proposal.bits} {key}"
        return Reading(proposal, known.reader, inputs, known.zero_range, known.scale_dtype, unpacking)

    def _cone(self, product: Product, leaves: Sequence[fx.Node]) -> Cone:
        described = tuple(
            Leaf(self.constants[leaf].path, value(leaf).dtype, tuple(int(size) for size in value(leaf).shape)) for leaf in leaves
        )
        root: Any = product.weight
        while is_call(root, torch.ops.aten.permute.default) and root.args[1] == [1, 0]:
            root = root.args[0]
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

    def _search(self, product: Product, leaves: Sequence[fx.Node]) -> _Known | str:
        tensors = [self.constants[leaf].tensor for leaf in leaves]
        dense = self._dense(product, leaves)
        # Random contents stand for all contents only if no value decides what is computed.
        sound = not any(is_fixed(tensor) for tensor in tensors) and _is_arithmetic(subgraph([product.weight], self.constants))
        cone = self._cone(product, leaves)
        if sound and cone.op is dequantize_packed:
            # Our own operator calls the layout's `unpack`, as the proposal does; to compare it with itself would prove nothing.
            # Tests do, over all codes and zero points, and the rewrite as a whole is proven on this weight.
            for ordinal, (reader, _) in enumerate(proposals(cone)):
                return _Known(reader, ordinal, None, by_value=False)
        accepted: _Known | None = None
        for ordinal, (reader, proposal) in enumerate(proposals(cone)):
            try:
                wrong, general = prove(dense, proposal, tensors, product.k)
            except Exception:  # a proposal that does not even fit the shapes
                continue
            if wrong is None and general:
                return _Known(reader, ordinal, None, by_value=not sound)
            if wrong is None and accepted is None:
                accepted = _Known(reader, ordinal, None, by_value=True)
        if accepted is not None:
            return accepted
        found = recovered.find(product, leaves, self.constants)
        return found if isinstance(found, str) else _Known("lattice", 0, found, by_value=True)

    def _build(self, product: Product, leaves: Sequence[fx.Node], known: _Known) -> tuple[Proposal, tuple[fx.Node, ...]]:
        """The proposal and its inputs, made again from what is remembered."""
        if known.found is not None:
            return recovered.proposal(product, leaves, known.found)
        for ordinal, (_, proposal) in enumerate(proposals(self._cone(product, leaves))):
            if ordinal == known.ordinal:
                narrow = four_bits(proposal) if known.narrow else proposal
                return (in_order(narrow) if known.straight else narrow), tuple(leaves)
        raise AssertionError("a reader proposes fewer readings than before")

    def _check_quickly(self, product: Product, leaves: Sequence[fx.Node], known: _Known) -> _Known | str:
        """`_check_values` on one thread: hundreds of small steps would each wait for the other threads on a busy machine."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._check_values(product, leaves, known)
        finally:
            torch.set_num_threads(threads)

    def _check_values(self, product: Product, leaves: Sequence[fx.Node], known: _Known) -> _Known | str:
        """What may differ between two weights of one structure: values, the scales' health, the zero points' range, unused bits."""
        proposal, inputs = self._build(product, leaves, known)
        feed = {leaf: self.constants[leaf].tensor for leaf in leaves}
        values = evaluate(inputs, feed)
        operands = None if known.by_value or known.found is not None else _without_codes(proposal, values)
        if operands is None or _may_overflow(operands.scales, value(product.weight).dtype):
            operands = proposal.unpack(values)
        if not all_finite(operands.scales):
            return "its scales hold NaN or infinity"
        if known.by_value or _may_overflow(operands.scales, value(product.weight).dtype):
            dense = evaluate([product.weight], feed)[0]
            wrong = disagreement(dense.t() if product.transposed else dense, operands, proposal.group, proposal.codebook)
            if wrong is not None:
                return f"its weight is not what it was read as: {wrong}"
            if not in_range(operands.codes, proposal.bits, operands.zeros is None and not proposal.codebook):
                return f"its codes need more than {proposal.bits} bits"
        if known.found is None:
            known = replace(known, narrow=fits_four_bits(operands, proposal), straight=is_in_order(operands))
            if known.narrow:  # leaving out the permutation changes nothing that is looked at below
                proposal, _ = self._build(product, leaves, known)
                operands = proposal.unpack(values)
        most = 1 << proposal.bits
        span = (0, 0)
        if operands.zeros is not None and operands.zeros.numel():
            span = (int(operands.zeros.min()), int(operands.zeros.max()))
            if proposal.bits < 8 and (span[0] < 0 or span[1] > most):
                return f"its zero points {span[0]} .. {span[1]} are outside 0 .. {most}"
        return replace(known, zero_range=span, scale_dtype=operands.scales.dtype)


# Operators whose result follows from their arguments by one formula, whatever the values are. Not among them: comparisons,
# clamping, sorting, rounding; what contains those is only believed for the values it was checked with.
_ARITHMETIC = frozenset(
    [
        "view",
        "reshape",
        "_unsafe_view",
        "permute",
        "t",
        "transpose",
        "unsqueeze",
        "squeeze",
        "expand",
        "clone",
        "alias",
        "detach",
        "lift_fresh_copy",
        "copy",
        "unfold",
        "as_strided",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "stack",
        "cat",
        "unflatten",
        "flatten",
        "repeat",
        "repeat_interleave",
        "flip",
        "roll",
        "slice_scatter",
        "select_scatter",
        "constant_pad_nd",
        "index",
        "index_select",
        "gather",
        "embedding",
        "arange",
        "iota",
        "full",
        "zeros",
        "ones",
        "empty",
        "full_like",
        "zeros_like",
        "ones_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "scalar_tensor",
        "_to_copy",
        "convert_element_type",
        "mul",
        "add",
        "sub",
        "rsub",
        "neg",
        "div",
        "reciprocal",
        "pow",
        "remainder",
        "floor_divide",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "bitwise_not",
        "bitwise_left_shift",
        "bitwise_right_shift",
        "__and__",
        "__or__",
        "__xor__",
        "__lshift__",
        "__rshift__",
        "__ilshift__",
        "__irshift__",
        "lshift",
        "rshift",
        "dequantize_packed",
    ]
)


def _is_arithmetic(nodes: Sequence[fx.Node]) -> bool:
    for node in nodes:
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and target.overloadpacket.__name__ not in _ARITHMETIC:
            return False
    return True


def _without_codes(proposal: Proposal, leaves: Sequence[Tensor]) -> Operands | None:
    """Scales, zero points and order alone, with codes that have a shape but no values; None if something needs the codes.

    Codes of fewer than 8 bits, unpacked from a container, cannot be out of range; unpacking a whole model just to look at its
    scales takes seconds.
    """
    if proposal.bits >= 8 or not leaves:
        return None
    largest = max(leaves, key=lambda leaf: leaf.nbytes)
    try:
        operands = proposal.unpack([leaf.to("meta") if leaf is largest else leaf for leaf in leaves])
    except Exception:  # the reading looks at values
        return None
    small = [item for item in operands[1:] if item is not None]
    return None if any(item.is_meta for item in small) or not operands.codes.is_meta else operands


def _may_overflow(scales: Tensor, dtype: torch.dtype) -> bool:
    """Whether a code times a scale may exceed what `dtype` holds."""
    return scales.numel() > 0 and float(scales.abs().max()) * 256 > torch.finfo(dtype).max


def _dtypes(leaves: Sequence[fx.Node]) -> str:
    return ", ".join(sorted({str(value(leaf).dtype).removeprefix("torch.") for leaf in leaves})) or "nothing"
