"""The torch.compile back end: captures ATen graphs, runs the pipeline on them, hands the rest to Inductor or runs it eagerly."""

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch import config as functorch_config
from torch.utils._python_dispatch import _disable_current_modes

from qcompile import cones, regions
from qcompile.capture import aot_constants, dynamo_constants
from qcompile.dump import Dump
from qcompile.emit import Emitter
from qcompile.errors import TRAINING_WARNING, QCompileError
from qcompile.graph import Constant, hint, value
from qcompile.options import Options, resolve
from qcompile.passes import PIPELINE
from qcompile.pipeline import State, check_equality, run
from qcompile.platform import platform
from qcompile.release import releasable
from qcompile.report import Report, SiteReport, clear, emit_trace, record
from qcompile.runner import Packed, Runner
from qcompile.store import STORE

log = logging.getLogger(__name__)

_numbers = count()
_warned: set[str] = set()
# Inductor turns products of one row into sums of products while tracing; we need to see the products.
_PRODUCT_DECOMPOSITIONS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::mv", "aten::linear")
# Inductor's default for the least number of steps of a thread, and how many steps one thread does as fast as several.
_INDUCTORS_CHUNK, _SMALL_LOOP = 512, 8192


def backend(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a Dynamo graph. mode: as for Inductor ("max-autotune", ...); options: fields of qcompile.options.Options."""
    return compile_graph(gm, example_inputs, resolve(options), mode)


def reset() -> None:
    """Forget decisions, proofs, and packed weights that can be made again; called by torch._dynamo.reset()."""
    clear()
    cones.forget()
    STORE.clear()
    _warned.clear()


backend.reset = reset  # type: ignore[attr-defined]


def compile_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    options: Options,
    mode: str | None = None,
    explained: list[SiteReport] | None = None,
) -> Callable[..., Any]:
    """The back end proper. With `explained`: decide, put the rows there, compile nothing, return results full of zeros."""
    from torch._inductor import list_mode_options  # noqa: PLC0415 - Inductor is slow to import
    from torch._inductor.compile_fx import compile_fx  # noqa: PLC0415

    patches = {**_few_threads_for_small_loops(), **(list_mode_options(mode) if mode is not None else {})}
    if torch.is_grad_enabled() and any(isinstance(item, Tensor) and item.requires_grad for item in example_inputs):
        _warn_once(TRAINING_WARNING)
        return compile_fx(gm, list(example_inputs), config_patches=patches)  # type: ignore[return-value]
    outer = dynamo_constants(gm, example_inputs)

    def inner(aten_gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        return _Compilation(gm, outer, options, explained).compile(aten_gm, list(inputs), kwargs)

    if options.rest == "eager" or explained is not None:
        return _eager(gm, example_inputs, inner)
    # Its cache would answer for our graphs without asking us; Inductor's own cache works on the rewritten graph.
    with functorch_config.patch(enable_autograd_cache=False):
        return compile_fx(  # type: ignore[return-value]
            gm, list(example_inputs), inner_compile=inner, config_patches=patches, decompositions=inductor_decompositions()
        )


def _few_threads_for_small_loops() -> dict[str, Any]:
    """Settings of Inductor under which a loop of fewer than 8192 steps stays on one thread.

    A step of decoding has hundreds of such loops (norms, rotations, gates of one row). Each barrier between threads costs some
    microseconds, the loop itself one, and a scheduler's tick where the processor is shared. A setting of the user's own is left.
    """
    from torch._inductor import config  # noqa: PLC0415 - Inductor is slow to import

    if config.cpp.min_chunk_size != _INDUCTORS_CHUNK:
        return {}
    return {"cpp.min_chunk_size": max(_INDUCTORS_CHUNK, _SMALL_LOOP // max(torch.get_num_threads(), 1))}


def inductor_decompositions() -> dict[Any, Any]:
    """Inductor's table without those that hide a matrix product."""
    from torch._inductor.decomposition import select_decomp_table  # noqa: PLC0415 - Inductor is slow to import

    table = select_decomp_table()
    return {
        target: rule
        for target, rule in table.items()
        if getattr(target, "name", str)().split(".")[0] not in _PRODUCT_DECOMPOSITIONS
    }


def _eager(gm: fx.GraphModule, example_inputs: Sequence[Any], inner: Callable[..., Any]) -> Callable[..., Any]:
    from torch._decomp import get_decompositions  # noqa: PLC0415 - as above
    from torch._dynamo.backends.common import aot_autograd  # noqa: PLC0415

    table = get_decompositions([torch.ops.aten.t, torch.ops.aten.transpose])
    with functorch_config.patch(enable_autograd_cache=False):
        compiler = aot_autograd(
            fw_compiler=inner, inference_compiler=inner, decompositions=table, keep_inference_input_mutations=True
        )
        return compiler(gm, list(example_inputs))


class _Compilation:
    """One graph on its way: pipeline, report, dump, hand-over."""

    def __init__(self, gm: fx.GraphModule, outer: dict[int, Constant], options: Options, explained: Any) -> None:
        self.gm, self.outer, self.options, self.explained = gm, outer, options, explained
        self.number = next(_numbers)

    def compile(self, gm: fx.GraphModule, inputs: list[Any], kwargs: dict[str, Any]) -> Any:
        pristine = copy.deepcopy(gm.graph)
        pristine_gm = fx.GraphModule(gm, pristine)
        placeholders = list(gm.graph.find_nodes(op="placeholder"))
        position = {node: index for index, node in enumerate(placeholders)}
        state = State(gm, self.options, platform(self.options.platform), paths=aot_constants(gm.graph, self.gm, self.outer))
        state.fuel = self.options.fuel
        state.emit = Emitter({} if self._is_eager(kwargs) else inductor_decompositions())
        dump = Dump(self.options.dump, self.number)
        try:
            # Tracing is still going on around us: without this, constants' values could not be computed.
            with _disable_current_modes(), torch.no_grad():
                run(PIPELINE, state, dump.observe, check_equality(state) if self.options.check else None)
            rewritten = bool(state.folded) or any(row.kernel for row in state.others)
            runner = self._runner(state, pristine_gm, position, inputs, kwargs) if rewritten else None
        except QCompileError:
            raise
        except Exception as error:  # ours, so the user's graph is compiled as it came
            what = f"the graph is compiled unchanged: {type(error).__name__}: {error}"
            log.warning("graph %d: %s", self.number, what)
            log.debug("rewriting failed", exc_info=True)
            self._record([SiteReport(module=f"graph {self.number}", declined=what)], state, dump)
            return self._hand_over(pristine_gm, inputs, kwargs)
        self._record([*(row for site in state.sites for row in site.rows()), *state.declined, *state.others], state, dump)
        return self._hand_over(pristine_gm, inputs, kwargs) if runner is None else runner

    @staticmethod
    def _is_eager(kwargs: dict[str, Any]) -> bool:
        return not kwargs  # Inductor passes its own arguments, AOTAutograd alone passes none

    def _record(self, decided: Sequence[SiteReport], state: State, dump: Dump) -> None:
        rows = [replace(row, graph=self.number) for row in decided]
        if self.explained is None:
            record(rows, self.number)
        else:
            self.explained.extend(rows)
        try:
            dump.decisions(rows, state)
            if rows:
                log.info("graph %d: %s", self.number, Report.of(rows).summary)
                emit_trace(Report.of(rows))
        except Exception:  # what is written about a graph must not stop it
            log.warning("graph %d: its report could not be written", self.number, exc_info=True)

    def _runner(
        self, state: State, pristine: fx.GraphModule, position: dict[fx.Node, int], inputs: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        nodes = list(state.graph.find_nodes(op="placeholder"))
        kept = [position[node] for node in nodes if node in position]
        folded = [state.folded[node] for node in nodes if node in state.folded]
        packed = [
            Packed(item.recipe, item.index, item.site, tuple(position[source] for source in item.recipe.sources)) for item in folded
        ]
        raw = dict.fromkeys(source for item in folded for source in item.recipe.sources)
        parts = [part for site in state.sites if site.kernel is not None for part in site.parts or (site,)]
        raw.update(dict.fromkeys(origin for part in parts if part.recheck is not None for origin in part.recheck.origins))
        order = [*[node for node in nodes if node in position], *[node for node in nodes if node in state.folded]]
        _reorder(state.graph, order)
        state.gm.recompile()
        new_inputs = [*(inputs[index] for index in kept), *(value(node) for node in nodes if node in state.folded)]
        if "static_input_idxs" in kwargs:
            static = set(kwargs["static_input_idxs"])
            known = [at for at, index in enumerate(kept) if index in static]
            kwargs = {**kwargs, "static_input_idxs": [*known, *range(len(kept), len(new_inputs))]}
        compiled = self._hand_over(state.gm, new_inputs, kwargs, regional=True)
        free: set[fx.Node] = set()
        if self.options.release and self.explained is None:
            captured = list(pristine.graph.find_nodes(op="placeholder"))
            free = {node for node in raw if not node.users and releasable(captured[position[node]])}
            if len(free) < len(raw):
                log.info(
                    "%d tensors stay: a bias, or read by the model's own code, which would crash without them", len(raw) - len(free)
                )
        watched = {node: (position[node], state.constants[node]) for node in raw}
        rows = [row for site in state.sites for row in site.rows()]
        runner = Runner(compiled, kept, packed, watched, _boxed(pristine), free, partial(_record_again, rows, self.number))
        runner.remember([constant.tensor for _, constant in watched.values()], [item.tensor for item in folded])
        return runner

    def _regions(self, gm: fx.GraphModule) -> regions.Plan | None:
        try:
            with _disable_current_modes():
                return regions.plan(gm)
        except Exception:  # an odd graph is compiled in one piece
            log.warning("graph %d: its regions could not be found", self.number, exc_info=True)
            return None

    def _hand_over(self, gm: fx.GraphModule, inputs: list[Any], kwargs: dict[str, Any], regional: bool = False) -> Any:
        if self.explained is not None:
            return _zeros(gm)
        if self._is_eager(kwargs):
            return _boxed(gm)
        from torch._inductor.compile_fx import compile_fx_inner  # noqa: PLC0415 - Inductor is slow to import

        # Part of the key of Inductor's cache on disk: a table has no stable key, a function's name is one.
        kwargs = {**kwargs, "get_decomp_fn": inductor_decompositions}
        found = self._regions(gm) if regional and self.options.regional else None
        if found is None:
            return compile_fx_inner(gm, inputs, **kwargs)
        log.info("graph %d: %s, each compiled once", self.number, found)

        def compile_module(module: fx.GraphModule, examples: list[Any], static: list[int]) -> Any:
            settings: dict[str, Any] = {**kwargs, "static_input_idxs": static}
            return compile_fx_inner(module, examples, **settings)

        return regions.compile_parts(gm, found, inputs, kwargs.get("static_input_idxs", ()), compile_module)


def _record_again(rows: Sequence[SiteReport], number: int, sets: int) -> None:
    """Rows of layers that run code compiled for others; Dynamo does not say what they are called."""
    note = f"runs the code of graph {number} with its own weights, set {sets}"
    record([replace(row, graph=number, identity=(number, sets, row.identity), note=note) for row in rows])


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


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=3)
