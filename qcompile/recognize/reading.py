"""A reading of a weight: which proposal or lattice was accepted, what was seen, and whether it also holds for other contents."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from qcompile.errors import ReleasedWeightError
from qcompile.formats.proposal import Proposal
from qcompile.graph.nodes import Constant, is_released
from qcompile.graph.text import structural_key
from qcompile.graph.walk import evaluate, leaves_of
from qcompile.recognize import lattice, recovered
from qcompile.recognize.acceptance import Claim, Facts, examine, out_of_range
from qcompile.recognize.narrowing import centred, in_order, narrowed
from qcompile.recognize.products import Product
from qcompile.recognize.readers import FRONT_DOOR
from qcompile.weights.derived import Derived

_DIFFERENT = "its content reads differently"


@dataclass(frozen=True, slots=True)
class Guess:
    """How a weight may be read: by a reader's proposal, or as the lattice `found`. Equal guesses unpack in the same way."""

    reader: str
    proposal: Proposal | None = None
    found: lattice.Found | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The weight of a product: the constants that it is computed from, and the text of the code that does it."""

    product: Product
    leaves: tuple[fx.Node, ...]
    structure: str

    @staticmethod
    def of(product: Product, leaves: Sequence[fx.Node]) -> "Subject":
        structure = structural_key([product.weight], leaves) + f"\ntransposed={product.transposed}"
        return Subject(product, tuple(leaves), structure)

    def claim(self, guess: Guess) -> Claim:
        if guess.proposal is not None:
            return Claim(self.product, guess.proposal, self.leaves, guess.reader == FRONT_DOOR)
        assert guess.found is not None
        return Claim(self.product, *recovered.proposal(self.product, self.leaves, guess.found))

    def raw(self, constants: Mapping[fx.Node, Constant]) -> list[Tensor]:
        return [constants[leaf].tensor for leaf in self.leaves]

    def examine(self, guess: Guess, constants: Mapping[fx.Node, Constant]) -> Facts | str:
        """What is seen of the weight if it is as guessed for these contents; otherwise what is wrong."""
        return examine(self.claim(guess), {leaf: constants[leaf] for leaf in self.leaves})

    def out_of_range(self, facts: Facts, constants: Mapping[fx.Node, Constant]) -> str:
        """Why numbers of such sizes are not to be served together with what scales the product's result, or ""."""
        if any(map(is_released, self.raw(constants))):
            return ""  # it was asked when they were packed
        post = self.product.post
        feed = {node: constant.tensor for node, constant in constants.items()} if post else {}
        values = evaluate([factor for factor, _ in post], feed)
        return out_of_range(facts, [(value, divides) for value, (_, divides) in zip(values, post, strict=True)])


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """An accepted guess and what was seen of the weight.

    proposal: what the guess says, in as few bits and so on as the facts allow
    inputs: nodes whose values `proposal.unpack` takes (the leaves, or for a lattice the dense weight and its scales)
    """

    subject: Subject
    guess: Guess
    facts: Facts
    proposal: Proposal
    inputs: tuple[fx.Node, ...]

    @staticmethod
    def of(subject: Subject, guess: Guess, facts: Facts) -> "Reading":
        claim = subject.claim(guess)
        proposal = claim.proposal
        if facts.narrow:
            proposal = narrowed(proposal, facts.narrow)
        elif facts.centred:
            proposal = centred(proposal, facts.zero_range)
        proposal = in_order(proposal) if facts.straight else proposal
        return Reading(subject, guess, facts, proposal, claim.inputs)

    @property
    def key(self) -> Hashable:
        """Equal for readings that unpack leaves of equal shapes in the same way."""
        facts = self.facts
        way = (self.proposal.bits, self.proposal.symmetric, self.proposal.act_order, facts.scale_dtype, facts.inner_bits)
        return self.guess, way, self.subject.structure

    def on(self, product: Product, constants: Mapping[fx.Node, Constant]) -> "Reading":
        """The same of the product's copy in another graph."""
        return Reading.of(Subject.of(product, leaves_of(product.weight, constants)), self.guess, self.facts)

    def of_others(self, constants: Mapping[fx.Node, Constant]) -> "Reading | str":
        """Exactly this reading of other contents, compared by value; or why it does not hold for them. Nothing is searched."""
        raw = self.subject.raw(constants)
        known = READINGS.get(raw, self.subject.structure)
        if known is None or known[0] != self.guess:
            if any(map(is_released, raw)):
                if known is not None:
                    return _DIFFERENT
                raise ReleasedWeightError(
                    next(constants[leaf].path for leaf in self.subject.leaves if is_released(constants[leaf].tensor))
                )
            with lattice.one_thread():
                facts = self.subject.examine(self.guess, constants)
            if isinstance(facts, str):
                return facts
            known = (self.guess, facts)
            READINGS.put(raw, known, self.subject.structure)
        found = Reading.of(self.subject, *known)
        return self.subject.out_of_range(found.facts, constants) or (found if found.key == self.key else _DIFFERENT)


# How each weight is read, and what was seen of it when it was compared, by structure.
READINGS: Derived[tuple[Guess, Facts]] = Derived()
