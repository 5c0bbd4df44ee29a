"""The compiled graph as AOTAutograd calls it: swaps raw weights for packed ones, and packs again when a raw weight has changed."""

import logging
import operator
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, fx

from qcompile.debug import count
from qcompile.errors import CHANGED_WARNING, ReleasedWeightError
from qcompile.graph.nodes import Constant, is_released
from qcompile.meaning import all_finite
from qcompile.pipeline import GraphSite
from qcompile.torch_internals.inductor import without_bookkeeping
from qcompile.weights.cache import STORE
from qcompile.weights.derived import Derived, Entry
from qcompile.weights.recipe import Recipe
from qcompile.weights.release import release_raw

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Packed:
    """One packed input: result `index` of a recipe; site: the linear that it is for, if it is one's."""

    recipe: Recipe
    index: int
    site: GraphSite | None


@dataclass(slots=True, eq=False)
class Weights:
    """What was packed from one set of raw weights. problem: why the packed form does not cover its content, or ""."""

    paths: tuple[str, ...]
    tensors: list[Tensor]
    problem: str = ""


class Runner:
    """Calls `compiled` with the arguments that are still inputs, then the packed weights.

    Before that it asks whether every raw weight is still what it was (qcompile.weights.freshness). If not, the packed weights are
    made again; if that is not possible for the new content, the graph runs as it was captured. One compiled graph may serve many
    layers or models of one shape, in turn: what was packed for each is kept as long as its raw weights live. Layers that are known
    when the graph is compiled are given to `adopt`; of weights that come later beside living ones `serves_more` hears.

    watched: the constants that something was folded from, and at which positions they are among the arguments.
    """

    _boxed_call = True

    def __init__(
        self,
        compiled: Callable[[list[Any]], Any],
        kept: Sequence[int],
        packed: Sequence[Packed],
        watched: Mapping[fx.Node, int],
        original: Callable[[list[Any]], Any],
        releasable: Collection[fx.Node] = (),
        serves_more: Callable[[int, Sequence[Tensor]], None] = lambda *_: None,
    ) -> None:
        self.code = compiled
        self.compiled = without_bookkeeping(compiled, partial(setattr, self, "compiled"))
        self.kept = tuple(kept)
        self.packed = tuple(packed)
        self.original = original
        self.nodes = tuple(watched)
        self.positions = tuple(watched.values())
        self.pick = operator.itemgetter(*self.positions) if len(self.positions) > 1 else self._pick_few
        self.releasable = releasable
        self.serves_more = serves_more
        self.paths: tuple[str, ...] = ()  # of the first layer, for those that come without names
        self.known = 0  # layers whose code this is
        self.sets = 0
        self.weights: Derived[Weights] = Derived()

    def _pick_few(self, args: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(args[position] for position in self.positions)

    def begin(self, leaves: Sequence[Constant], tensors: list[Tensor], *, release: bool = True) -> None:
        """These packed tensors belong to these raw constants; those are in the order of `watched`. release: unless told later."""
        self.known = self.sets = 1
        self.paths = tuple(leaf.path for leaf in leaves)
        self._remember(leaves, tensors, release=release)

    def adopt(self, leaves: Sequence[Constant]) -> str:
        """Pack the raw constants of one more layer, too; or the reason why this code does not fit them."""
        tensors, problem = self._packed(leaves, set(self.nodes))
        if not problem:
            count("adopted")
            self.known += 1
            self.sets += 1
            self._remember(leaves, tensors)
        return problem

    def _remember(self, leaves: Sequence[Constant], tensors: list[Tensor], problem: str = "", *, release: bool = True) -> Weights:
        """From now on these packed tensors belong to these raw ones. Raw ones that nobody else reads are released, if asked for."""
        raw = [leaf.tensor for leaf in leaves]
        if release and not problem:
            release_raw(leaf for leaf, node in zip(leaves, self.nodes, strict=True) if node in self.releasable)
        return self.weights.put(raw, Weights(tuple(leaf.path for leaf in leaves), tensors, problem)).value

    def weights_of(self, raw: Sequence[Tensor]) -> Weights:
        """What was packed from these raw weights, in the order of `positions`; packed again if one changed."""
        entry = self.weights.entries.get(tuple(map(id, raw)))
        return entry.value if entry is not None and entry.snapshot.unchanged(raw) else self._pack_again(raw, entry)

    def __call__(self, args: list[Any]) -> Any:
        weights = self.weights_of(self.pick(args))
        if weights.problem:
            return self.original(args)
        inputs = [args[position] for position in self.kept]
        inputs += weights.tensors
        args.clear()
        return self.compiled(inputs)

    def _pack_again(self, raw: Sequence[Tensor], before: Entry[Weights] | None) -> Weights:
        paths = self.paths if before is None else before.value.paths
        leaves = [Constant(path, tensor) for path, tensor in zip(paths, raw, strict=True)]
        different = [True] * len(raw) if before is None else before.snapshot.changed(raw)
        changed = {node for node, new in zip(self.nodes, different, strict=True) if new}
        if before is not None and not changed:  # released by another graph that reads the same weight
            return self._remember(leaves, before.value.tensors, before.value.problem)
        count("packed_again")
        log.info("%d raw tensors of packed weights changed: packing again", len(changed))
        tensors, problem = self._packed(leaves, changed)
        if problem:
            count("unpacked")
            warnings.warn(CHANGED_WARNING.format(problem=problem), stacklevel=2)
        elif before is None and len(self.weights.entries) >= self.known:  # not a replaced parameter, whose entry is gone
            self.sets += 1
            self.serves_more(self.sets, raw)
        return self._remember(leaves, tensors, problem)

    def _packed(self, leaves: Sequence[Constant], changed: set[fx.Node]) -> tuple[list[Tensor], str]:
        """(the packed tensors of these raw constants, "") or ([], what does not fit)."""
        given = dict(zip(self.nodes, leaves, strict=True))
        problem = self._problem(given, changed)
        results: list[Tensor] = []
        for item in self.packed if not problem else ():
            recipe = item.recipe
            try:
                results.append(STORE.fetch(recipe, [given[source] for source in recipe.sources])[item.index])
            except ReleasedWeightError:
                raise
            except Exception as error:  # a library's packing may refuse the new content
                return [], f"{_layer(given[recipe.sources[0]])}: packing failed: {type(error).__name__}: {error}"
        return results, problem

    def _problem(self, given: Mapping[fx.Node, Constant], changed: set[fx.Node]) -> str:
        """Why the packed form does not cover the new content, "" if it does."""
        for node in changed:
            tensor = given[node].tensor
            if not is_released(tensor) and not all_finite(tensor):
                return f"{given[node].path} holds NaN or infinity"
        sites = {id(item.site): item.site for item in self.packed if item.site is not None}
        for site in sites.values():
            if site.kernel is None:
                continue  # the dense weight is what the captured code makes of any content
            for part in site.parts or (site,):
                wrong = "" if changed.isdisjoint(part.recheck.origins) else part.recheck.problem(given, part.site, site.kernel)
                if wrong:
                    return f"{_layer(given[part.recheck.origins[0]])}: its content does not fit {part.report.scheme}: {wrong}"
        return ""


def _layer(leaf: Constant) -> str:
    return leaf.layer
