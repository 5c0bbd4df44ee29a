"""One ATen graph on its way: the pipeline, the decisions about it, its dump, and the hand-over to Inductor or the interpreter."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.debug import count
from qcompile.errors import QCompileError, brief
from qcompile.graph.capture import aot_constants, number_of, resolve
from qcompile.graph.nodes import Constant, hint, value
from qcompile.graph.tracing import Emitter
from qcompile.hardware import platform
from qcompile.meaning import Verdict
from qcompile.options import Options
from qcompile.passes import PIPELINE
from qcompile.pipeline import State
from qcompile.recognize import unexplained
from qcompile.reporting import unseen
from qcompile.reporting.report import record
from qcompile.reporting.rows import SiteReport
from qcompile.run import decompositions
from qcompile.run.dump import Dump
from qcompile.run.rewrite import rewrite
from qcompile.run.runner import Packed, Runner
from qcompile.torch_internals import compilers
from qcompile.torch_internals.aot import metadata
from qcompile.torch_internals.aot_wrapper import Duties, duties
from qcompile.torch_internals.inductor import inner_compiler
from qcompile.torch_internals.inputs import PlainInput, description
from qcompile.torch_internals.names import Place, places_now
from qcompile.torch_internals.tensors import without_modes
from qcompile.weights.release import releasable

log = logging.getLogger(__name__)


class Compilation:
    """Compiles the ATen graph that AOTAutograd makes of `gm`. As a qcompile.run.regions.Region it is what became of one module.

    outer      the constants among gm's inputs, by number
    number     of the graph that Dynamo captured; dump: where files about this one go
    busy       numbers of gm's inputs that others read, too, so that they are never released
    hold       release nothing before `settle`
    explained  decide only: what comes back computes nothing
    also       gets rows of layers that run this code later
    verified   what was proven about kernels in other parts of the same graph
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        outer: Mapping[int, Constant],
        options: Options,
        *,
        number: int,
        dump: Dump,
        busy: set[int] | None = None,
        hold: bool = False,
        explained: bool = False,
        also: Callable[[list[SiteReport]], None] = record,
        verified: dict[Any, Verdict] | None = None,
    ) -> None:
        self.gm, self.outer, self.options, self.number, self.dump = gm, outer, options, number, dump
        self.busy, self.hold, self.explained, self.also = busy or set(), hold, explained, also
        self.verified = {} if verified is None else verified
        self.rows: list[SiteReport] = []
        self.writes: list[int] = []
        self.repeatable = False  # with what it writes to put back, the graph can be run a second time
        self.folded: list[int] = []
        self.by_value = False
        self.duties: Duties | None = None  # what a caller does in the place of AOTAutograd's wrapper, None if that has to stay
        self.made: Callable[[list[Any]], Any] | None = None
        self.call: Callable[[list[Any]], Any] = _unfinished
        self._descriptions: list[Any] = []  # of the constants that something was folded from
        self._packer: Runner | None = None

    def compile(self, gm: fx.GraphModule, inputs: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The compiled graph; boxed. kwargs: what Inductor passes to its inner compiler, nothing if AOTAutograd calls."""
        count("compiled")
        self._look_around(gm)
        self.made = self._compile(gm, list(inputs), kwargs)
        return self.made

    @property
    def direct(self) -> bool:
        """Whether AOTAutograd's wrapper may be left out."""
        return self.duties is not None

    @property
    def runner(self) -> Runner | None:
        """What `call` is, if it is a Runner and nothing around it."""
        return self._packer if self.direct else None

    def constants(self, given: Mapping[int, Constant]) -> list[Constant]:
        """The constants that something was folded from, looked up among these inputs of gm."""
        found = [resolve(item, self.gm, given) for item in self._descriptions]
        return [item for item in found if item is not None]

    def adopt(self, given: Mapping[int, Constant]) -> str:
        """Serve a layer with these constants, too; or the reason why this code does not fit them."""
        if self._packer is None:
            return ""
        leaves = self.constants(given)
        if len(leaves) != len(self._descriptions):
            return "an input of it is no constant"
        with without_modes(), torch.no_grad():
            try:
                return self._packer.adopt(leaves)
            except Exception as error:  # it gets code of its own, where the report tells what is wrong
                log.debug("adopting %s", leaves[0].path, exc_info=True)
                return f"{leaves[0].path if leaves else 'a layer'}: {brief(error)}"

    def settle(self, given: Mapping[int, Constant]) -> None:
        """From now on nothing else will read the raw weights this was compiled with: they may be released."""
        if self._packer is not None and self.options.release:
            leaves = self.constants(given)
            self._packer.begin(leaves, self._packer.weights_of([leaf.tensor for leaf in leaves]).tensors)

    def _look_around(self, gm: fx.GraphModule) -> None:
        """What AOTAutograd does around the graph: which inputs are written to, and whether its wrapper may be left out."""
        meta = metadata()
        if meta is None:
            return
        self.writes = [number for number, info in enumerate(meta.input_info) if info.mutates_data or info.mutates_metadata]
        given = len(list(self.gm.graph.find_nodes(op="placeholder")))
        if self.writes and len(meta.input_info) != given:  # inputs were merged: any may be meant
            self.writes = list(range(given))
        changes_more = bool(meta.tokens) or any(info.mutates_metadata for info in meta.input_info)
        self.repeatable = not changes_more and len(meta.input_info) <= given
        placeholders = list(gm.graph.find_nodes(op="placeholder"))
        graph_inputs = [number_of(description(node)) for node in placeholders]
        plain = all(isinstance(description(node), PlainInput) for node in placeholders)
        outputs = next(iter(gm.graph.find_nodes(op="output"))).args[0]
        if not plain or graph_inputs != list(range(len(meta.input_info))) or len(outputs) != len(meta.output_info):
            return
        found = duties(meta)
        if isinstance(found, str):
            log.debug("graph %d: AOTAutograd's wrapper stays: %s", self.number, found)
        else:
            self.duties = found

    def _compile(self, gm: fx.GraphModule, inputs: list[Any], kwargs: dict[str, Any]) -> Any:
        pristine_gm = fx.GraphModule(gm, copy.deepcopy(gm.graph))
        position: dict[fx.Node, int] = {}
        state: State | None = None

        def start(fresh: fx.GraphModule) -> State:
            nonlocal state
            position.update((node, index) for index, node in enumerate(fresh.graph.find_nodes(op="placeholder")))
            state = State(
                fresh, self.options, platform(self.options.platform), paths=aot_constants(fresh.graph, self.gm, self.outer)
            )
            state.fuel = self.options.fuel
            state.verified = self.verified
            state.emit = Emitter({} if self._is_eager(kwargs) else decompositions.for_inductor())
            return state

        try:
            # Tracing is still going on around us: without this, constants' values could not be computed.
            with without_modes(), torch.no_grad():
                done = rewrite(PIPELINE, gm, pristine_gm.graph, start, self.dump.observe)
            rewritten = bool(done.folded) or any(row.kernel for row in done.others)
            runner = self._made_runner(done, pristine_gm, position, inputs, kwargs) if rewritten else None
        except QCompileError:
            raise
        except Exception as error:  # ours, so the user's graph is compiled as it came
            if compilers.failed(error):
                raise
            what = f"the graph is compiled unchanged: {brief(error)}"
            log.warning("graph %d: %s", self.number, what)
            log.debug("rewriting failed", exc_info=True)
            self._record([SiteReport(module=f"graph {self.number}", declined=what)], state)
            return self._hand_over(pristine_gm, inputs, kwargs)
        decided = [*(row for site in done.sites for row in site.rows()), *done.declined]
        self._record([*decided, *self._unexplained(pristine_gm.graph, decided, done), *done.others], done)
        self.by_value = done.declined_by_value
        return self._hand_over(pristine_gm, inputs, kwargs) if runner is None else runner

    def _unexplained(self, pristine: fx.Graph, decided: Sequence[SiteReport], state: State) -> list[SiteReport]:
        """Rows about low-bit constants that the passes have not met, or not as weights."""
        explained = state.explained | {row.identity for row in decided if isinstance(row.identity, int)}
        refused = {node.name: reason for node, reason in state.refused.items()}
        try:
            constants = aot_constants(pristine, self.gm, self.outer)
            found = unexplained.rows(pristine, constants, refused, explained, {row.module for row in decided})
            leaving = unexplained.leaving(pristine, constants, explained | {row.identity for row in found})
            return found + unseen.without_product(leaving, {row.module for row in (*decided, *found)})
        except Exception:  # what is written about a graph must not stop it
            log.warning("graph %d: what else is quantized in it could not be found out", self.number, exc_info=True)
            return []

    @staticmethod
    def _is_eager(kwargs: dict[str, Any]) -> bool:
        return not kwargs  # Inductor passes its own arguments, AOTAutograd alone passes none

    def _record(self, decided: Sequence[SiteReport], state: State | None) -> None:
        self.rows = [replace(row, graph=self.number) for row in decided]
        try:
            if state is not None:
                self.dump.decisions(self.rows, state)
        except Exception:  # what is written about a graph must not stop it
            log.warning("graph %d: its dump could not be written", self.number, exc_info=True)

    def _made_runner(
        self, state: State, pristine: fx.GraphModule, position: dict[fx.Node, int], inputs: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        nodes = list(state.graph.find_nodes(op="placeholder"))
        kept = [position[node] for node in nodes if node in position]
        folded = [state.folded[node] for node in nodes if node in state.folded]
        packed = [Packed(item.recipe, item.index, item.site) for item in folded]
        raw = dict.fromkeys(source for item in folded for source in item.recipe.sources)
        parts = [part for site in state.sites if site.kernel is not None for part in site.parts or (site,)]
        raw.update(dict.fromkeys(origin for part in parts for origin in part.recheck.origins))
        order = [*[node for node in nodes if node in position], *[node for node in nodes if node in state.folded]]
        _reorder(state.graph, order)
        state.gm.recompile()
        new_inputs = [*(inputs[index] for index in kept), *(value(node) for node in nodes if node in state.folded)]
        if "static_input_idxs" in kwargs:
            static = set(kwargs["static_input_idxs"])
            known = [at for at, index in enumerate(kept) if index in static]
            kwargs = {**kwargs, "static_input_idxs": [*known, *range(len(kept), len(new_inputs))]}
        compiled = self._hand_over(state.gm, new_inputs, kwargs)
        free: set[fx.Node] = set()
        if self.options.release and not self.explained:
            captured = list(pristine.graph.find_nodes(op="placeholder"))
            free = {
                node
                for node in raw
                if not node.users and releasable(captured[position[node]]) and number_of(description(node)) not in self.busy
            }
            if len(free) < len(raw):
                log.info(
                    "%d tensors stay: a bias, or read by the model's own code, which would crash without them", len(raw) - len(free)
                )
        rows = [row for site in state.sites for row in site.rows()]
        watched = {node: position[node] for node in raw}
        self._descriptions = [description(node) for node in raw]
        self.folded = [number for item in self._descriptions if (number := number_of(item)) is not None]
        again = partial(_served_too, rows, [id(state.constants[node].tensor) for node in raw], self.number, self.also)
        runner = Runner(compiled, kept, packed, watched, _boxed(pristine), free, again)
        runner.begin([state.constants[node] for node in raw], [item.tensor for item in folded], release=not self.hold)
        self._packer = runner
        return runner

    def _hand_over(self, gm: fx.GraphModule, inputs: list[Any], kwargs: dict[str, Any]) -> Any:
        if self.explained:
            return _zeros(gm)
        if self._is_eager(kwargs):
            return _boxed(gm)
        # Part of the key of Inductor's cache on disk: a table has no stable key, a function's name is one.
        return inner_compiler(gm, inputs, {**kwargs, "get_decomp_fn": decompositions.for_inductor})


def _unfinished(_: list[Any]) -> Any:
    raise AssertionError("called before it was compiled")


def _served_too(
    rows: Sequence[SiteReport],
    mine: Sequence[int],
    number: int,
    also: Callable[[list[SiteReport]], None],
    sets: int,
    theirs: Sequence[Tensor],
) -> None:
    """Rows of layers that run code compiled for others. mine: ids of the tensors it was compiled for, theirs: what runs instead."""
    try:
        places = places_now()
        same = dict(zip(mine, theirs, strict=True))
        also([_row_again(row, same.get(row.identity), places, number, sets) for row in rows])  # type: ignore[call-overload]
    except Exception:  # what is written about a call must not stop it
        log.warning("graph %d: a report about layers that run its code could not be made", number, exc_info=True)


def _row_again(row: SiteReport, tensor: Tensor | None, places: Mapping[int, Place], number: int, sets: int) -> SiteReport:
    place = None if tensor is None else places.get(id(tensor))
    if place is None:  # of no model that is known
        note = f"runs the code of graph {number} with its own weights, set {sets}"
        return replace(row, graph=number, identity=(number, sets, row.identity), note=note)
    note = f"runs the code of graph {number}"
    return replace(row, graph=number, identity=id(tensor), module=place.module or place.path, note=note)


def _reorder(graph: fx.Graph, order: list[fx.Node]) -> None:
    """Put the graph's inputs into this order, before everything else."""
    for node in reversed(order):
        first = next(iter(graph.nodes))
        if node is not first:
            first.prepend(node)


def _boxed(gm: fx.GraphModule) -> Callable[[list[Any]], Any]:
    def call(args: list[Any]) -> Any:
        given = list(args)
        args.clear()
        return gm(*given)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _zeros(gm: fx.GraphModule) -> Callable[[list[Any]], Any]:
    """Runs nothing: outputs have the right shapes and are zero."""
    outputs = [value(node) if isinstance(node, fx.Node) else node for node in next(iter(gm.graph.find_nodes(op="output"))).args[0]]

    def call(args: list[Any]) -> Any:
        args.clear()
        return [_zero(item) for item in outputs]

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _zero(item: Any) -> Any:
    if isinstance(item, Tensor):
        return torch.zeros([hint(size) for size in item.shape], dtype=item.dtype, device=item.device)
    return hint(item)
