"""What a pass is, what it works on, and how the pipeline runs them: order, invariants, dumps, equality between passes."""

import logging
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.errors import PassOrderError, QCompileError, UnservedError
from qcompile.formats.proposal import Proposal
from qcompile.graph.nodes import Constant, hint, named_arguments
from qcompile.graph.tracing import Emitter
from qcompile.graph.walk import evaluate
from qcompile.hardware import Platform
from qcompile.kernel import OTHER_KERNELS, Kernel, Reasons, Site
from qcompile.meaning import Operands, Verdict, sqnr_db
from qcompile.options import Options
from qcompile.recognize.still_true import Recheck
from qcompile.reporting.rows import SiteReport
from qcompile.weights.recipe import Recipe

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Decision:
    """What was decided about a site, and why. kernel: None if none takes it; few_rows: x of fewer rows runs in the kernel that
    kernel.few names (0: none does); the others are fields of the report's row.
    """

    kernel: Kernel | None = None
    few_rows: int = 0
    reasons: dict[str, Reasons] = field(default_factory=dict)
    predicted_ms: dict[str, float] = field(default_factory=dict)
    measured_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    sqnr_db: float | None = None
    dense: str = ""
    fallback: str = "packed"


@dataclass(slots=True, eq=False)
class GraphSite:
    """One quantized linear of the graph on its way through the pipeline.

    node        the canonical call (later the kernel call) that computes it
    result      what stands in the graph for the linear's result: `node`, or views and casts of it
    original    what computed the result before; `lower` puts that back if no kernel takes the site
    weight      the node of the original graph that is the dense weight operand (what fallback="dense" folds)
    leaves      the raw constants of the weight
    proposal    what was accepted, by reader `reader`; recheck: asks whether it also holds for other content of the constants
    site        what eligibility rules see
    module      the layer's path; identity: what stays the same when it is compiled again
    bytes_before  of the constants that it reads; bytes_after: that it reads now
    parts, cuts the linears that `fuse` joined into this one, and the slices of its result that stand for theirs
    alone       why `fuse` could not join it with others, or ""
    note        one more sentence for the report
    """

    node: fx.Node
    result: fx.Node
    original: fx.Node
    weight: fx.Node
    leaves: tuple[fx.Node, ...]
    proposal: Proposal
    reader: str
    site: Site
    recheck: Recheck
    module: str
    identity: Hashable
    bytes_before: int
    bytes_after: int = 0
    parts: tuple["GraphSite", ...] = ()
    cuts: tuple[fx.Node, ...] = ()
    alone: str = ""
    note: str = ""
    decision: Decision = field(default_factory=Decision)

    @property
    def kernel(self) -> Kernel | None:
        return self.decision.kernel

    def moved(self, node: fx.Node) -> None:
        """`node` now stands in the graph for the site's call."""
        if self.result is self.node:
            self.result = node
        self.node = node

    def apart(self) -> tuple["GraphSite", ...]:
        """The linears that were joined, each as it was before; itself if it is one."""
        for part, cut in zip(self.parts, self.cuts, strict=True):
            cut.replace_all_uses_with(part.node)
            if part.result is cut:
                part.result = part.node
            part.note = ""
        return self.parts or (self,)

    def give_up(self, reason: str) -> tuple["GraphSite", ...]:
        """The site (or what it was joined from) without its kernel, which turned out not to work."""
        before = self.decision
        assert before.kernel is not None
        reasons = {**before.reasons, before.kernel.name: (reason,)}
        parts = self.apart()
        for part in parts:
            part.decision = replace(before, kernel=None, few_rows=0, sqnr_db=None, reasons=reasons)
        return parts

    @property
    def report(self) -> SiteReport:
        """The report's row about this site as a whole."""
        return self._row(self.decision, self.bytes_after)

    def rows(self) -> list[SiteReport]:
        """The rows of the report: one, or one for each linear that was joined."""
        return [part._row(self.decision, self.bytes_after * part.site.n // self.site.n) for part in self.parts] or [self.report]

    def _row(self, decision: Decision, bytes_after: int) -> SiteReport:
        site = self.site
        return SiteReport(
            module=self.module,
            format=self.proposal.format,
            bits=site.bits,
            group=site.group,
            symmetric=site.symmetric,
            act_order=site.act_order,
            codebook=site.codebook,
            rows=site.rows,
            offset=site.offset,
            two_level=site.outer and site.inner_bits > 0,
            n=site.n,
            k=site.k,
            activation=site.activation.spec,
            kernel=decision.kernel.name if decision.kernel else None,
            reasons=decision.reasons,
            recognized_by=self.reader,
            fallback=decision.fallback,
            note=self.note,
            bytes_before=self.bytes_before,
            bytes_after=bytes_after,
            sqnr_db=decision.sqnr_db,
            predicted_ms=decision.predicted_ms,
            measured_ms=decision.measured_ms,
            dense=decision.dense,
            identity=self.identity,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A constant that `fold` made: result number `index` of the recipe. site: the linear it belongs to, if it is one's."""

    recipe: Recipe
    index: int
    tensor: Tensor
    site: GraphSite | None

    @property
    def module(self) -> str:
        """The path of the linear, or of what the constant was computed from."""
        return ", ".join(self.recipe.paths) if self.site is None else self.site.module

    @property
    def kernel(self) -> str:
        """What it was made for."""
        return self.site.kernel.name if self.site is not None and self.site.kernel is not None else "dense"


@dataclass(slots=True, eq=False)
class State:
    """What passes read and change: the ATen graph, its constants, its sites, and the constants that `fold` made."""

    gm: fx.GraphModule
    options: Options
    platform: Platform
    paths: dict[fx.Node, Constant] = field(default_factory=dict)  # candidates given by the capture
    constants: dict[fx.Node, Constant] = field(default_factory=dict)
    sites: list[GraphSite] = field(default_factory=list)
    declined: list[SiteReport] = field(default_factory=list)
    declined_by_value: bool = False  # for what the constants hold, not only for what the graph does with them
    others: list[SiteReport] = field(default_factory=list)  # decisions about what is no quantized linear (attention, dense)
    dense: list[str] = field(default_factory=list)  # paths of dense linears, which are left alone
    refused: dict[fx.Node, str] = field(default_factory=dict)  # low-bit inputs that are no constants, and why
    explained: set[int] = field(default_factory=set)  # ids of the low-bit tensors of weights that have a row
    unread: dict[fx.Node, str] = field(default_factory=dict)  # products that could not be written as one, and why
    folded: dict[fx.Node, Folded] = field(default_factory=dict)  # graph inputs that `fold` made
    fuel: int | None = None
    verified: dict[Any, Verdict] = field(default_factory=dict)  # what `choose` proved, for all parts of one graph
    emit: Emitter = field(default_factory=Emitter)

    @property
    def graph(self) -> fx.Graph:
        return self.gm.graph

    def need_all_served(self) -> None:
        """UnservedError if option fallback asks that every quantized linear has a kernel, and one has none."""
        unserved = [site for site in self.sites if site.kernel is None]
        if self.options.fallback == "error" and (unserved or self.declined):
            lines = [f"{row.module}: {row.declined}" for row in self.declined]
            for site in unserved:
                lines += [f"{site.module}: {name}: {reason}" for name, why in site.decision.reasons.items() for reason in why]
            raise UnservedError(lines)

    def burn(self) -> bool:
        """Whether one more rewrite is allowed (option fuel)."""
        if self.fuel is None:
            return True
        self.fuel -= 1
        return self.fuel >= 0

    def note(self, row: SiteReport, reasons: Reasons, sqnr: float | None = None) -> None:
        """Write down about what is no quantized linear that its kernel takes it, or for these reasons does not."""
        name = OTHER_KERNELS[row.format]
        kernel, why = (None, {name: reasons}) if reasons else (name, {})
        self.others.append(replace(row, kernel=kernel, reasons=why, sqnr_db=sqnr))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One job. needs / gives: names of invariants; `holds` lists what is wrong with the ones it gives (empty: nothing).

    optional: the graph computes the same without this pass, and all later ones work; so it is left out where it fails.
    """

    name: str
    apply: Callable[[State], None]
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()
    holds: Callable[[State], Iterable[str]] = lambda _: ()
    optional: bool = False


def check_order(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """The passes themselves, if each one's needs are given by earlier ones; PassOrderError otherwise."""
    given: set[str] = set()
    for step in passes:
        if not step.needs <= given:
            raise PassOrderError(step.name, step.needs - given)
        given |= step.gives
    return passes


class BrokenInvariantError(AssertionError):
    """A pass did not leave the graph as it promises; it is left out, or the backend compiles the graph unchanged."""


class PassError(Exception):
    """`step` failed as a whole, because of `__cause__`; the graph may be anything now."""

    def __init__(self, step: Pass) -> None:
        super().__init__(f"pass {step.name} failed")
        self.step = step


def run(
    passes: tuple[Pass, ...],
    state: State,
    observe: Callable[[int, str, str, State], None] = lambda *_: None,
    check_equal: Callable[[State, str], None] | None = None,
) -> None:
    """Run the passes in order; `observe(number, pass, "before" | "after", state)` sees every step.

    PassError if one of them fails; errors that qcompile raises on purpose come as they are.
    """
    for number, step in enumerate(passes):
        observe(number, step.name, "before", state)
        try:
            step.apply(state)
            state.graph.lint()
            problems = list(step.holds(state))
            if problems:
                raise BrokenInvariantError(f"after {step.name}: " + "; ".join(problems))
            observe(number, step.name, "after", state)
            if check_equal is not None:
                check_equal(state, step.name)
        except QCompileError:
            raise
        except Exception as error:
            raise PassError(step) from error
        log.debug("pass %s: %d nodes, %d sites", step.name, len(state.graph.nodes), len(state.sites))


def probe_inputs(state: State, seed: int = 0) -> dict[fx.Node, Any]:
    """A value for every graph input: constants as they are, other tensors random, sizes as traced."""
    generator = torch.Generator().manual_seed(seed)
    feed: dict[fx.Node, Any] = {}
    for node in state.graph.find_nodes(op="placeholder"):
        val = node.meta.get("val")
        if node in state.constants:
            feed[node] = state.constants[node].tensor
        elif node in state.folded:
            feed[node] = state.folded[node].tensor
        elif isinstance(val, Tensor):
            shape = [hint(size) for size in val.shape]
            if val.dtype.is_floating_point:
                feed[node] = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(val.dtype)
            else:
                feed[node] = torch.zeros(shape, dtype=val.dtype, device="cpu")
        else:
            feed[node] = hint(val)
    return feed


def check_equality(state: State, least_db: float = 30.0) -> Callable[[State, str], None]:
    """A check for `run`: the graph's outputs on a probe must stay what they were before the first pass."""
    names = {node: node.name for node in state.graph.find_nodes(op="placeholder")}
    feed = {names[node]: item for node, item in _initial_feed(state).items()}
    first = _outputs(state, feed)

    def check(after: State, name: str) -> None:
        for index, (old, new) in enumerate(zip(first, _outputs(after, feed), strict=True)):
            if isinstance(old, Tensor) and old.dtype.is_floating_point and not sqnr_db(old, new) >= least_db:
                raise BrokenInvariantError(f"after {name}: output {index} changed, {sqnr_db(old, new):.1f} dB")

    return check


def _initial_feed(state: State) -> dict[fx.Node, Any]:
    feed = probe_inputs(state)
    feed.update({node: constant.tensor for node, constant in state.paths.items()})
    return feed


def _outputs(state: State, feed: dict[str, Any]) -> list[Any]:
    values: dict[fx.Node, Any] = {}
    for node in state.graph.find_nodes(op="placeholder"):
        values[node] = state.folded[node].tensor if node in state.folded else feed[node.name]
    output = next(iter(state.graph.find_nodes(op="output")))
    roots = [node for node in output.args[0] if isinstance(node, fx.Node)]
    return evaluate(roots, values)


def operand_nodes(site: GraphSite) -> Operands:
    """The nodes that are the canonical call's constant operands."""
    given = named_arguments(site.node)
    return Operands(**{name: given[name] for name in Operands._fields})
