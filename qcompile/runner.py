"""The compiled graph as AOTAutograd calls it: swaps raw weights for packed ones, and packs again when a raw weight has changed."""

import logging
import operator
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.check import disagreement, in_range
from qcompile.errors import CHANGED_WARNING, ReleasedWeightError
from qcompile.graph import Constant, evaluate, is_released
from qcompile.kernels import Kernel
from qcompile.pipeline import GraphSite
from qcompile.release import release_raw
from qcompile.store import STORE, Recipe
from qcompile.watch import Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Packed:
    """One packed input: result `index` of a recipe, and at which positions its raw weights are among the arguments."""

    recipe: Recipe
    index: int
    site: GraphSite
    positions: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Weights:
    """One set of raw weights and what was packed from it. problem: why the packed form does not cover its content, or ""."""

    tensors: list[Tensor]
    watch: Watch
    problem: str = ""


class Runner:
    """Calls `compiled` with the arguments that are still inputs, then the packed weights.

    Before that it asks whether every raw weight is still what it was (qcompile.watch). If not, the packed weights are made
    again; if that is not possible for the new content, the graph runs as it was captured. One compiled graph may serve many layers
    or models of one shape, in turn: what was packed for each is kept as long as its raw weights live. `serves_more` hears of the
    second, third, ... set of weights.
    """

    _boxed_call = True

    def __init__(
        self,
        compiled: Callable[[list[Any]], Any],
        kept: Sequence[int],
        packed: Sequence[Packed],
        watched: Mapping[fx.Node, tuple[int, Constant]],
        original: Callable[[list[Any]], Any],
        releasable: Collection[fx.Node] = (),
        serves_more: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.compiled = compiled
        self.kept = tuple(kept)
        self.packed = tuple(packed)
        self.original = original
        self.nodes = tuple(watched)
        self.paths = tuple(constant.path for _, constant in watched.values())
        self.positions = tuple(position for position, _ in watched.values())
        self.pick = operator.itemgetter(*self.positions) if len(self.positions) > 1 else self._pick_few
        self.releasable = releasable
        self.serves_more = serves_more
        self.sets = 1
        self.weights: dict[tuple[int, ...], _Weights] = {}

    def _pick_few(self, args: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(args[position] for position in self.positions)

    def remember(self, raw: Sequence[Tensor], tensors: list[Tensor], problem: str = "") -> _Weights:
        """From now on these packed tensors belong to these raw ones. Raw ones that nobody else reads are released, if asked for."""
        key = tuple(map(id, raw))
        if not problem:
            release_raw(
                Constant(path, tensor)
                for path, node, tensor in zip(self.paths, self.nodes, raw, strict=True)
                if node in self.releasable
            )
        this = weakref.ref(self)

        def gone() -> None:
            runner = this()
            if runner is not None and runner.weights.get(key) is weights:
                del runner.weights[key]

        weights = _Weights(tensors, Watch(raw, gone), problem)
        self.weights[key] = weights
        return weights

    def __call__(self, args: list[Any]) -> Any:
        raw = self.pick(args)
        weights = self.weights.get(tuple(map(id, raw)))
        if weights is None or not weights.watch.unchanged(raw):
            weights = self._pack_again(args, raw, weights)
        if weights.problem:
            return self.original(args)
        inputs = [args[position] for position in self.kept]
        inputs += weights.tensors
        args.clear()
        return self.compiled(inputs)

    def _pack_again(self, args: Sequence[Any], raw: Sequence[Tensor], before: _Weights | None) -> _Weights:
        different = [True] * len(raw) if before is None else before.watch.changed(raw)
        changed = {node for node, new in zip(self.nodes, different, strict=True) if new}
        if before is not None and not changed:  # released by another graph that reads the same weight
            return self.remember(raw, before.tensors, before.problem)
        log.info("%d raw tensors of packed weights changed: packing again", len(changed))
        problem = self._problem(dict(zip(self.nodes, raw, strict=True)), changed)
        results: list[Tensor] = []
        for item in self.packed if not problem else ():
            leaves = [Constant(path, args[at]) for path, at in zip(item.recipe.paths, item.positions, strict=True)]
            try:
                results.append(STORE.fetch(item.recipe, leaves)[item.index])
            except ReleasedWeightError:
                raise
            except Exception as error:  # a library's packing may refuse the new content
                problem = f"{item.site.report.module}: packing failed: {type(error).__name__}: {error}"
                break
        if problem:
            warnings.warn(CHANGED_WARNING.format(problem=problem), stacklevel=2)
        elif before is None and self.weights:  # beside living ones; a parameter that was replaced is no further layer
            self.sets += 1
            self.serves_more(self.sets)
        return self.remember(raw, results, problem)

    def _problem(self, values: Mapping[fx.Node, Tensor], changed: set[fx.Node]) -> str:
        """Why the packed form does not cover the new content, "" if it does."""
        for node in changed:
            if values[node].is_floating_point() and not is_released(values[node]) and not bool(torch.isfinite(values[node]).all()):
                return f"{node.meta.get('constant', node.name)} holds NaN or infinity"
        sites = {id(item.site): item.site for item in self.packed}
        for site in sites.values():
            if site.kernel is None:
                continue  # the dense weight is what the captured code makes of any content
            for part in site.parts or (site,):
                touched = part.recheck is not None and not changed.isdisjoint(part.recheck.origins)
                if touched and not still_read(part, values, site.kernel):
                    return f"{part.report.module}: its new content does not fit {part.report.scheme}"
        return ""


def still_read(site: GraphSite, values: Mapping[fx.Node, Tensor], kernel: Kernel) -> bool:
    """Whether the accepted reading of a weight also holds for its new content, and the kernel takes that."""
    recheck = site.recheck
    assert recheck is not None
    leaves = [values[node] for node in recheck.origins]
    proposal = site.proposal
    try:
        with torch.no_grad():
            dense, *read = evaluate([recheck.weight, *recheck.inputs], dict(zip(recheck.sources, leaves, strict=True)))
            operands = proposal.unpack(read)
            wrong = disagreement(dense.t() if recheck.transposed else dense, operands, proposal.group, proposal.codebook)
    except ReleasedWeightError:
        raise
    except Exception:  # new shapes or contents that the code itself rejects
        return False
    if wrong is not None or not in_range(operands.codes, proposal.bits, operands.zeros is None):
        return False
    if operands.zeros is None or operands.zeros.numel() == 0:
        return True
    span = int(operands.zeros.min()), int(operands.zeros.max())
    if proposal.bits < 8 and (span[0] < 0 or span[1] > 1 << proposal.bits):
        return False
    return not kernel.refuses(replace(site.site, zero_range=span))
