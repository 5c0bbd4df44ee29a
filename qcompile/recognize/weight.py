"""Reads the weight of a product: which reader's proposal, or which lattice, is proven to be what the graph computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.errors import ReleasedWeightError
from qcompile.formats.proposal import Cone, Leaf, LeafIndex, Proposal
from qcompile.graph.nodes import Constant, is_call, is_released, named_arguments, value
from qcompile.graph.text import structural_key
from qcompile.graph.walk import evaluate, leaves_of, subgraph
from qcompile.operators import dequantize_packed
from qcompile.proofs.weight import is_fixed, random_leaves
from qcompile.recognize import lattice, recovered
from qcompile.recognize.acceptance import Claim, Facts, agrees, examine, out_of_range
from qcompile.recognize.narrowing import centred, in_order, narrowed
from qcompile.recognize.products import Product, low_bit_leaves
from qcompile.recognize.readers import proposals
from qcompile.recognize.unread import GENERAL
from qcompile.torch_internals.tensors import OpOverload
from qcompile.weights.derived import Derived

# Random contents of leaves of more bytes than that are not made: then nothing is known of other weights of the structure.
_MOST_RANDOM = 64 << 20
_MOST_FINDINGS = 32


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
    inner_bits: int
    key: str  # equal for readings that unpack leaves of equal shapes in the same way


@dataclass(frozen=True, slots=True)
class _Guess:
    """How a weight of some structure was read, by a reader's proposal or as a lattice: what is compared first for the next one."""

    reader: str
    number: int  # of the proposal among all for the structure
    proposal: Proposal | None
    found: lattice.Found | None = None

    @property
    def text(self) -> str:
        return f"{self.reader} {self.number} {self.found}"


_structures: dict[str, _Guess] = {}
# How each weight is read, and what was seen of it when it was compared, by structure.
READINGS: Derived[tuple[_Guess, Facts]] = Derived()


def clear() -> None:
    """Forget what was read, except of weights that are released and so cannot be read again."""
    _structures.clear()
    READINGS.clear()


class Reader:
    """Reads products of one graph. `read` returns a Reading, or the reason why nothing explains the weight."""

    def __init__(self, constants: dict[fx.Node, Constant]) -> None:
        self.constants = constants

    def read(self, product: Product) -> Reading | str:
        leaves = leaves_of(product.weight, self.constants)
        if not low_bit_leaves(leaves):
            return f"the weight is stored as {_dtypes(leaves)}, which is not quantized"
        structure = structural_key([product.weight], leaves) + f"\ntransposed={product.transposed}"
        raw = [self.constants[leaf].tensor for leaf in leaves]
        known = READINGS.get(raw, structure)
        if known is None:
            found = self._read_anew(product, leaves, structure)
            if isinstance(found, str):
                return found
            known = found
            _structures[structure] = known[0]
            READINGS.put(raw, known, structure)
        guess, facts = known
        if not any(map(is_released, raw)):
            wrong = out_of_range(facts, self._factors(product))
            if wrong:
                return wrong
        proposal, inputs = self._proposal(product, leaves, guess)
        if facts.narrow:
            proposal = narrowed(proposal, facts.narrow)
        elif facts.centred:
            proposal = centred(proposal, facts.zero_range)
        proposal = in_order(proposal) if facts.straight else proposal
        unpacking = f"{guess.text} {proposal.bits} {proposal.symmetric} {structure}"
        return Reading(proposal, guess.reader, inputs, facts.zero_range, facts.scale_dtype, facts.inner_bits, unpacking)

    def _factors(self, product: Product) -> list[tuple[Tensor, bool]]:
        """The values of what scales the product's result, each with whether it divides."""
        if not product.post:
            return []
        feed = {node: constant.tensor for node, constant in self.constants.items()}
        values = evaluate([factor for factor, _ in product.post], feed)
        return [(value, divides) for value, (_, divides) in zip(values, product.post, strict=True)]

    def _read_anew(self, product: Product, leaves: Sequence[fx.Node], structure: str) -> tuple[_Guess, Facts] | str:
        """The guess from another weight of the structure, if it holds for this one, too; otherwise the first that does."""
        guess = _structures.get(structure)
        if guess is not None:
            facts = self._examine_quickly(product, leaves, guess, structure)
            if isinstance(facts, Facts):
                return guess, facts
        return self._search(product, leaves, structure)

    def _search(self, product: Product, leaves: Sequence[fx.Node], structure: str) -> tuple[_Guess, Facts] | str:
        """The first reading that holds for this weight, rather one that also holds for random contents than one by chance."""
        chance: tuple[_Guess, Facts] | None = None
        for number, (reader, proposal) in enumerate(proposals(self._cone(product, leaves))):
            guess = _Guess(reader, number, proposal)
            try:
                facts = self._examine(product, leaves, guess, structure)
            except ReleasedWeightError:
                raise
            except Exception:  # a proposal that does not even fit the shapes
                continue
            if isinstance(facts, str):
                continue
            if self._holds_for_others(product, leaves, guess, structure):
                return guess, facts
            chance = chance or (guess, facts)
        if chance is not None:
            return chance
        return self._recover(product, leaves, structure)

    def _recover(self, product: Product, leaves: Sequence[fx.Node], structure: str) -> tuple[_Guess, Facts] | str:
        """The first of the weight's recovered readings that holds, or why none does."""
        values = recovered.Values(product, leaves, self.constants)
        wrong = ""
        for found in islice(values.findings(), _MOST_FINDINGS):
            guess = _Guess("lattice", 0, None, found)
            facts = self._examine(product, leaves, guess, structure)
            if isinstance(facts, Facts):
                return guess, facts
            wrong = wrong or facts
        reason = values.reason()
        return wrong if wrong and reason == GENERAL else reason

    def _cone(self, product: Product, leaves: Sequence[fx.Node]) -> Cone:
        described = tuple(
            Leaf(self.constants[leaf].path, value(leaf).dtype, tuple(int(size) for size in value(leaf).shape)) for leaf in leaves
        )
        root: Any = product.weight
        while is_call(root, torch.ops.aten.permute.default) and root.args[1] == [1, 0]:
            root = root.args[0]
        inner = subgraph([root], self.constants)
        if len(inner) == 1 and isinstance(root.target, OpOverload):
            index = {leaf: LeafIndex(number) for number, leaf in enumerate(leaves)}
            arguments = {
                name: index.get(item, item) if isinstance(item, fx.Node) else item for name, item in named_arguments(root).items()
            }
            return Cone(described, product.n, product.k, root.target, arguments)
        return Cone(described, product.n, product.k)

    def _proposal(self, product: Product, leaves: Sequence[fx.Node], guess: _Guess) -> tuple[Proposal, tuple[fx.Node, ...]]:
        if guess.proposal is not None:
            return guess.proposal, tuple(leaves)
        assert guess.found is not None
        return recovered.proposal(product, leaves, guess.found)

    def _claim(self, product: Product, leaves: Sequence[fx.Node], guess: _Guess, structure: str) -> Claim:
        proposal, inputs = self._proposal(product, leaves, guess)
        return Claim(product, proposal, inputs, f"{guess.text} {structure}")

    def _examine(self, product: Product, leaves: Sequence[fx.Node], guess: _Guess, structure: str) -> Facts | str:
        return examine(self._claim(product, leaves, guess, structure), {leaf: self.constants[leaf] for leaf in leaves})

    def _examine_quickly(self, product: Product, leaves: Sequence[fx.Node], guess: _Guess, structure: str) -> Facts | str:
        """On one thread: hundreds of small steps would each wait for the other threads on a busy machine."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._examine(product, leaves, guess, structure)
        finally:
            torch.set_num_threads(threads)

    def _holds_for_others(self, product: Product, leaves: Sequence[fx.Node], guess: _Guess, structure: str) -> bool:
        """Whether the reading also holds for random contents, so that it is a good guess for other weights of the structure.

        Of two readings that hold for a weight, one with and one without zero points, say, this tells which one is meant.
        """
        if is_call(product.weight, dequantize_packed) and guess.reader == "front_door":
            return True
        tensors = [self.constants[leaf].tensor for leaf in leaves]
        if any(is_fixed(tensor) for tensor in tensors) or sum(tensor.nbytes for tensor in tensors) > _MOST_RANDOM:
            return False
        random = random_leaves(tensors, product.k, torch.Generator().manual_seed(20260))
        try:
            return agrees(self._claim(product, leaves, guess, structure), dict(zip(leaves, random, strict=True)), 1)
        except Exception:  # the code may reject random contents (an index out of range)
            return False


def _dtypes(leaves: Sequence[fx.Node]) -> str:
    return ", ".join(sorted({str(value(leaf).dtype).removeprefix("torch.") for leaf in leaves})) or "nothing"
