"""Reads the weight of a product: which reader's proposal, or which lattice, is proven to be what the graph computes."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import fx

from qcompile.errors import ReleasedWeightError
from qcompile.formats.proposal import Cone, Leaf, LeafIndex, Proposal
from qcompile.graph.nodes import Constant, is_call, named_arguments, value
from qcompile.graph.walk import leaves_of, subgraph
from qcompile.operators import dequantize_packed
from qcompile.proofs.weight import is_fixed, random_leaves
from qcompile.recognize import lattice, recovered
from qcompile.recognize.acceptance import Facts, agrees
from qcompile.recognize.products import Product, low_bit_leaves
from qcompile.recognize.readers import FRONT_DOOR, proposals
from qcompile.recognize.reading import READINGS, Guess, Reading, Subject
from qcompile.recognize.unread import GENERAL
from qcompile.torch_internals.tensors import OpOverload

# Random contents of leaves of more bytes than that are not made: then nothing is known of other weights of the structure.
_MOST_RANDOM = 64 << 20
_MOST_FINDINGS = 32


# By structure: what readers propose, made once so that equal guesses are equal, and what held last, to be compared first.
_proposals: dict[str, tuple[tuple[str, Proposal], ...]] = {}
_last: dict[str, Guess] = {}


def clear() -> None:
    """Forget what was read, except of weights that are released and so cannot be read again."""
    READINGS.clear()
    kept = {key[0] for key in READINGS.entries}
    for structure in _proposals.keys() - kept:
        del _proposals[structure]
    for structure in _last.keys() - kept:
        del _last[structure]


class Reader:
    """Reads products of one graph. `read` returns a Reading, or the reason why nothing explains the weight."""

    def __init__(self, constants: dict[fx.Node, Constant]) -> None:
        self.constants = constants

    def read(self, product: Product) -> Reading | str:
        leaves = leaves_of(product.weight, self.constants)
        if not low_bit_leaves(leaves):
            return f"the weight is stored as {_dtypes(leaves)}, which is not quantized"
        subject = Subject.of(product, leaves)
        raw = subject.raw(self.constants)
        known = READINGS.get(raw, subject.structure)
        if known is None:
            found = self._read_anew(subject)
            if isinstance(found, str):
                return found
            known = found
            _last[subject.structure] = known[0]
            READINGS.put(raw, known, subject.structure)
        return subject.out_of_range(known[1], self.constants) or Reading.of(subject, *known)

    def _read_anew(self, subject: Subject) -> tuple[Guess, Facts] | str:
        """The guess from another weight of the structure, if it holds for this one, too; otherwise the first that does."""
        guess = _last.get(subject.structure)
        if guess is not None:
            with lattice.one_thread():
                facts = subject.examine(guess, self.constants)
            if isinstance(facts, Facts):
                return guess, facts
        return self._search(subject)

    def _search(self, subject: Subject) -> tuple[Guess, Facts] | str:
        """The first reading that holds for this weight, rather one that also holds for random contents than one by chance."""
        chance: tuple[Guess, Facts] | None = None
        for guess in self._guesses(subject):
            try:
                facts = subject.examine(guess, self.constants)
            except ReleasedWeightError:
                raise
            except Exception:  # a proposal that does not even fit the shapes
                continue
            if isinstance(facts, str):
                continue
            if self._holds_for_others(subject, guess):
                return guess, facts
            chance = chance or (guess, facts)
        if chance is not None:
            return chance
        return self._recover(subject)

    def _guesses(self, subject: Subject) -> Iterator[Guess]:
        if subject.structure not in _proposals:
            _proposals[subject.structure] = tuple(proposals(self._cone(subject.product, subject.leaves)))
        return (Guess(reader, proposal) for reader, proposal in _proposals[subject.structure])

    def _recover(self, subject: Subject) -> tuple[Guess, Facts] | str:
        """The first of the weight's recovered readings that holds, or why none does."""
        values = recovered.Values(subject.product, subject.leaves, self.constants)
        wrong = ""
        for found in islice(values.findings(), _MOST_FINDINGS):
            guess = Guess("lattice", found=found)
            facts = subject.examine(guess, self.constants)
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

    def _holds_for_others(self, subject: Subject, guess: Guess) -> bool:
        """Whether the reading also holds for random contents, so that it is a good guess for other weights of the structure.

        Of two readings that hold for a weight, one with and one without zero points, say, this tells which one is meant.
        """
        if is_call(subject.product.weight, dequantize_packed) and guess.reader == FRONT_DOOR:
            return True
        tensors = subject.raw(self.constants)
        if any(is_fixed(tensor) for tensor in tensors) or sum(tensor.nbytes for tensor in tensors) > _MOST_RANDOM:
            return False
        random = random_leaves(tensors, subject.product.k, torch.Generator().manual_seed(20260))
        try:
            return agrees(subject.claim(guess), dict(zip(subject.leaves, random, strict=True)), 1)
        except Exception:  # the code may reject random contents (an index out of range)
            return False


def _dtypes(leaves: Sequence[fx.Node]) -> str:
    return ", ".join(sorted({str(value(leaf).dtype).removeprefix("torch.") for leaf in leaves})) or "nothing"
