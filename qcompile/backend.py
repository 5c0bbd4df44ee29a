"""The torch.compile back end: captures ATen graphs, runs the pipeline on them, hands the rest to Inductor or runs it eagerly."""

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx

from qcompile import debug, versions
from qcompile.errors import STRANGE_TORCH_WARNING, TRAINING_WARNING, UNREAD_WARNING, QCompileError
from qcompile.frontends import notes
from qcompile.graph.capture import dynamo_constants
from qcompile.graph.nodes import Constant
from qcompile.meaning import Verdict
from qcompile.options import Options
from qcompile.passes import choose
from qcompile.recognize import weight
from qcompile.reporting import unseen
from qcompile.reporting.report import Report, clear, note, record, retire
from qcompile.reporting.rows import SiteReport
from qcompile.run import decompositions, regions
from qcompile.run.compilation import Compilation
from qcompile.run.dump import Dump
from qcompile.run.first_calls import FirstCalls
from qcompile.targets.registry import settings
from qcompile.torch_internals import compilers, dynamo, recompiles
from qcompile.torch_internals.aot import through_aot
from qcompile.torch_internals.inductor import through_inductor
from qcompile.torch_internals.names import compiled_callers, outermost
from qcompile.torch_internals.private import missing
from qcompile.torch_internals.trace import emit
from qcompile.warning import warn
from qcompile.weights.cache import STORE

log = logging.getLogger(__name__)

_numbers = count()
_warned: set[str] = set()


def backend(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, mode: str | None = None, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a Dynamo graph. mode: as for Inductor ("max-autotune", ...); options: fields of qcompile.options.Options."""
    return compile_graph(gm, example_inputs, settings(options), mode)


def reset() -> None:
    """Forget decisions, proofs, and packed weights that can be made again; called by torch._dynamo.reset()."""
    clear()
    unseen.clear()
    weight.clear()
    choose.PROOFS.clear()
    STORE.clear()
    compilers.try_again()
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
    if lacking := missing(inductor=options.rest == "inductor"):
        return _unchanged(gm, example_inputs, lacking, explained)
    if explained is None:
        recompiles.watch(_last_graph)
    if torch.is_grad_enabled() and any(isinstance(item, Tensor) and item.requires_grad for item in example_inputs):
        _warn_once(TRAINING_WARNING)
        return _training(gm, example_inputs, mode)
    for model in compiled_callers() if explained is None else ():
        unseen.watch(model)
    graph, call = _compiled(gm, example_inputs, options, mode, explained)
    constants = [constant.tensor for constant in graph.constants.values()]
    told = notes.added(graph.rows, constants, strict=options.fallback == "error")
    graph.rows = [replace(row, graph=graph.number) for row in told]
    if explained is not None:
        explained.extend(graph.rows)
        return call
    unseen.saw(constants)
    graph.model = outermost() or graph.number
    record(graph.rows, graph.model)
    call = graph.with_net(call)
    weakref.finalize(dynamo.innermost(call), retire, graph.number).atexit = False
    _say(graph)
    return call


def _compiled(
    gm: fx.GraphModule, inputs: Sequence[Any], options: Options, mode: str | None, explained: list[SiteReport] | None
) -> tuple["_Graph", Callable[..., Any]]:
    """The graph and its code; the rest runs eagerly where Inductor lacks a compiler."""
    eager = replace(options, rest="eager")
    graph = _Graph(gm, inputs, eager if compilers.absent() else options, mode, explained)
    try:
        return graph, (graph.in_regions() if graph.may_be_cut else None) or graph.whole()
    except Exception as error:
        if graph.options.rest == "eager" or not compilers.failed(error):
            raise
        compilers.give_up(error)
    graph = _Graph(gm, inputs, eager, mode, explained)
    return graph, graph.whole()


def _training(gm: fx.GraphModule, inputs: Sequence[Any], mode: str | None) -> Callable[..., Any]:
    try:
        if any(isinstance(item, Tensor) and item.device.type == "cpu" for item in inputs):
            compilers.look()  # the backward pass is compiled when it first runs, where nothing can be done any more
        return through_inductor(gm, inputs, mode)
    except Exception as error:
        if not compilers.failed(error):
            raise
        compilers.give_up(error)
        return gm.forward


def _unchanged(
    gm: fx.GraphModule, inputs: Sequence[Any], lacking: Sequence[str], explained: list[SiteReport] | None
) -> Callable[..., Any]:
    """The graph as torch compiles it by itself, because this torch lacks what our passes lean on."""
    number = next(_numbers)
    row = SiteReport(module=f"graph {number}", declined="; ".join(lacking), graph=number)
    if explained is not None:
        explained.append(row)
        return gm.forward
    record([row], number)
    _warn_once(STRANGE_TORCH_WARNING, reasons="; ".join(lacking), way_out=versions.untried("torch"))
    return dynamo.unchanged(gm, list(inputs))


def _last_graph(text: str) -> None:
    if note(text):
        warn(f"qcompile: {text}")


def _say(graph: "_Graph") -> None:
    """Log what was decided about a graph; nothing quantized in it that could be read is worth a warning."""
    unread = [row for row in graph.rows if row.declined and row.is_linear and row.module != f"graph {row.graph}"]
    if unread and not any(row.recognized_by for row in graph.rows):
        _warn_once(UNREAD_WARNING, module=unread[0].module, reason=unread[0].declined, more=len(unread) - 1)
    if graph.rows:
        try:
            given = Report.of(graph.rows)
            log.info("graph %d: %s", graph.number, given.summary)
            emit(given.to_json)
        except Exception:  # what is written about a graph must not stop it
            log.warning("graph %d: its report could not be written", graph.number, exc_info=True)


class _Graph:
    """One graph that Dynamo captured, compiled whole or in regions."""

    def __init__(
        self, gm: fx.GraphModule, inputs: Sequence[Any], options: Options, mode: str | None, explained: list[SiteReport] | None
    ) -> None:
        self.gm, self.inputs, self.options, self.mode, self.explained = gm, list(inputs), options, mode, explained is not None
        self.also = record if explained is None else explained.extend
        self.number = next(_numbers)
        debug.count("graphs")
        self.constants = dynamo_constants(gm, inputs)
        self.rows: list[SiteReport] = []
        self.verified: dict[Any, Verdict] = {}
        self.model: Any = self.number  # what tells its rows from those of another model
        self.written: Sequence[int] | None = None  # numbers of inputs, None if a second run would not be the same

    @property
    def may_be_cut(self) -> bool:
        """Options that look at every site, or count them, want the graph in one piece."""
        options = self.options
        looks = options.verify == "every" or options.fuel is not None
        return options.regional and options.rest == "inductor" and not looks and not self.explained

    def whole(self) -> Callable[..., Any]:
        """Compile the graph in one piece."""
        one = self._compilation(self.gm, self.constants, Dump(self.options.dump, self.number))
        if self.options.rest == "eager" or self.explained:
            call = through_aot(self.gm, self.inputs, one.compile, decompositions.for_eager())
        else:
            call = through_inductor(self.gm, self.inputs, self.mode, one.compile, decompositions.for_inductor())
        self.rows = one.rows
        self.written = one.writes if one.repeatable else None
        return call

    def with_net(self, code: Callable[..., Any]) -> Callable[..., Any]:
        """The code, with the captured graph to fall back on if it raises in its first calls; holds no tensor of this call."""
        if self.options.fallback == "error":
            return code
        gm, mode, rows, model, number = self.gm, self.mode, self.rows, self.model, self.number
        # What is compiled at run time would be right for one size only.
        interpreted = self.options.rest == "eager" or any(isinstance(item, torch.SymInt) for item in self.inputs)

        def unchanged(args: Sequence[Any]) -> Callable[..., Any]:
            return gm if interpreted else through_inductor(gm, args, mode)

        net = FirstCalls(code, gm, self.written, unchanged, lambda what: record(_without_kernels(rows, what, number), model))

        def call(*args: Any) -> Any:
            return net.call(*args)

        return call

    def in_regions(self) -> Callable[..., Any] | None:
        """Compile it in parts, what repeats once; None if it has to be compiled whole."""
        try:
            plan = regions.plan(self.gm, self.inputs)
            if plan is None:
                return None
            named = dict(zip(self.gm.graph.find_nodes(op="placeholder"), range(len(self.inputs)), strict=True))
            constants = {node: self.constants[index] for node, index in named.items() if index in self.constants}
            built = regions.build(self.gm, self.inputs, plan, constants, self._region())
        except QCompileError:
            raise
        except Exception as error:  # an odd graph is compiled in one piece
            if compilers.failed(error):
                raise
            expected = isinstance(error, regions.SplitError)
            log.log(logging.INFO if expected else logging.WARNING, "graph %d: not compiled in regions: %s", self.number, error)
            log.debug("cutting failed", exc_info=True)
            return None
        log.info("graph %d: %s, each compiled once; %d pieces of code", self.number, plan, built.compiled)
        self.rows = built.rows
        self.written = built.written
        Dump(self.options.dump, self.number).regions(built.rows, plan)
        return built.call

    def _region(self) -> regions.Compile:
        places = count()

        def compile_module(module: fx.GraphModule, inputs: list[Any], constants: dict[int, Constant], busy: set[int]) -> Any:
            one = self._compilation(module, constants, Dump(self.options.dump, self.number, next(places)), busy, hold=True)
            wrapped = through_inductor(module, inputs, self.mode, one.compile, decompositions.for_inductor())
            one.call = one.made if one.direct and one.made is not None else lambda box: wrapped(*box)
            return one

        return compile_module

    def _compilation(
        self,
        gm: fx.GraphModule,
        constants: Mapping[int, Constant],
        dump: Dump,
        busy: set[int] | None = None,
        *,
        hold: bool = False,
    ) -> Compilation:
        return Compilation(
            gm,
            constants,
            self.options,
            number=self.number,
            dump=dump,
            busy=busy,
            hold=hold,
            explained=self.explained,
            also=self.also,
            verified=self.verified,
        )


def _without_kernels(rows: Sequence[SiteReport], what: str, number: int) -> list[SiteReport]:
    """The rows of a graph that runs unchanged after all."""
    changed = [
        replace(
            row,
            kernel=None,
            reasons={**row.reasons, row.kernel: (what,)} if row.kernel else row.reasons,
            bytes_after=row.bytes_before,
            sqnr_db=None,
            fallback="packed",
        )
        for row in rows
    ]
    if not Report.of(rows).sites:
        changed.append(SiteReport(module=f"graph {number}", declined=what, graph=number))
    return changed


def _warn_once(text: str, **filled: object) -> None:
    if text not in _warned:
        _warned.add(text)
        warn(text.format(**filled))
