"""Cuts a graph at its repeats into parts: one module for all copies of a repeat, one for each stretch between them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.run.regions.repeats import Repeat, arguments, find_repeats, signature
from qcompile.torch_internals.inputs import example, is_static
from qcompile.torch_internals.sizes import free_symbols, free_unbacked_symbols
from qcompile.torch_internals.tensors import inner_tensors

log = logging.getLogger(__name__)

# Calls that make nothing and change nothing a later part could miss.
_HARMLESS = frozenset(["_log_api_usage_once", "_check", "_check_is_size", "_assert_async", "_assert_scalar", "sym_constrain_range"])


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One call of a module: the nodes of the whole graph that it reads and those that it makes, in the module's order."""

    module: int
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What computes the same as a graph: these calls of these modules, one after the other."""

    modules: tuple[fx.GraphModule, ...]
    parts: tuple[Part, ...]
    repeats: tuple[Repeat, ...]

    def __str__(self) -> str:
        return ", ".join(f"{repeat.count} regions of {repeat.period} nodes" for repeat in self.repeats)


class _UncutError(Exception):
    """The graph has to stay in one piece; the message says why."""


def plan(gm: fx.GraphModule, inputs: Sequence[Any]) -> Plan | None:
    """How to compute a graph that Dynamo captured region by region, or None: nothing repeats, or it has to stay in one piece.

    inputs: the graph's example inputs. Every module keeps its calls in their order, those that write included, so what the modules
    compute in turn is what the graph computes; what has to be asked once they are compiled is in `compile_parts`.
    """
    calls = [node for node in gm.graph.nodes if node.op not in {"placeholder", "output"}]
    placeholders = list(gm.graph.find_nodes(op="placeholder"))
    given = {node: _of_input(node, item) for node, item in zip(placeholders, inputs, strict=True)}
    repeats = find_repeats(calls, lambda node: given[node] if node in given else signature(example(node)))
    if not repeats:
        return None
    cutter = _Cutter(gm)
    at = 0
    try:
        for repeat in repeats:
            cutter.stretch(calls[at : repeat.start])
            cutter.repeat([calls[copy.start : copy.stop] for copy in repeat.copies()])
            at = repeat.stop
        cutter.stretch(calls[at:])
    except _UncutError as error:
        log.info("not cut into regions: %s", error)
        return None
    return Plan(tuple(cutter.modules), tuple(cutter.parts), tuple(repeats))


def _of_input(node: fx.Node, item: Any) -> Any:
    """What compiled code assumes of an input of the graph, beside its looks: what kind of tensor it is, what it consists of."""
    if not isinstance(item, Tensor):
        return signature(example(node))
    flags = (item.requires_grad, item.is_inference(), item.is_conj(), item.is_neg(), str(item.layout))
    return signature(example(node)), type(item), is_static(node), flags, _inside(item)


def _inside(item: Tensor) -> Any:
    """The parts of a tensor subclass; its own description of them has to be equal, too."""
    parts, context = inner_tensors(item)
    if not parts and context is None:
        return None
    return repr(context), [(name, type(part), signature(part), _inside(part)) for name, part in parts.items()]


class _Cutter:
    """Makes modules and their calls, stretch by stretch."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.symbols = {
            val.node.expr: node
            for node in gm.graph.find_nodes(op="placeholder")
            if isinstance(val := example(node), torch.SymInt) and val.node.expr.is_Symbol
        }
        self.modules: list[fx.GraphModule] = []
        self.parts: list[Part] = []

    def stretch(self, nodes: Sequence[fx.Node]) -> None:
        """One module for these nodes."""
        if nodes:
            self.repeat([nodes])

    def repeat(self, copies: Sequence[Sequence[fx.Node]]) -> None:
        """One module for all copies, which are already known to be equal."""
        _keeps_the_state(copies[0])
        reads = self._reads(copies)
        outside = [{user for node in copy for user in node.users} - set(copy) for copy in copies]
        made = [
            index
            for index in range(len(copies[0]))
            if any(set(copy[index].users) & others for copy, others in zip(copies, outside, strict=True))
        ]
        for node in (*(read[0] for read in reads), *(copies[0][index] for index in made)):
            if not _can_cross(example(node)):
                raise _UncutError(f"{node.format_node()} would cross from one region into another")
        self.modules.append(self._module(copies, reads, made))
        for number, copy in enumerate(copies):
            inputs = tuple(read[number] for read in reads)
            self.parts.append(Part(len(self.modules) - 1, inputs, tuple(copy[index] for index in made)))

    def _reads(self, copies: Sequence[Sequence[fx.Node]]) -> dict[tuple[fx.Node, ...], int]:
        """The inputs, numbered: what each copy reads from outside at one place. Places are one input if all copies read alike."""
        reads: dict[tuple[fx.Node, ...], int] = {}
        inner = set(copies[0])
        for nodes in zip(*copies, strict=True):
            for read in zip(*(arguments(node) for node in nodes), strict=True):
                if read[0] not in inner:
                    reads.setdefault(read, len(reads))
        symbols = set().union(*(_symbols(example(node)) for node in [*copies[0], *(read[0] for read in reads)]))
        if unknown := symbols - set(self.symbols):
            raise _UncutError(f"{', '.join(map(str, unknown))}: no input of the graph tells that size")
        # A module learns sizes from its arguments; for those that no argument shows plainly the size itself is one.
        for symbol in sorted(symbols, key=str):
            reads.setdefault((self.symbols[symbol],) * len(copies), len(reads))
        return reads

    def _module(
        self, copies: Sequence[Sequence[fx.Node]], reads: dict[tuple[fx.Node, ...], int], made: Sequence[int]
    ) -> fx.GraphModule:
        graph = fx.Graph()
        given = []
        for read, number in reads.items():
            given.append(graph.placeholder(f"{read[0].name}_{number}"))
            given[-1].meta = dict(read[0].meta)
        inner: dict[fx.Node, fx.Node] = {}
        for nodes in zip(*copies, strict=True):
            # By place, not by node: the first copy may read one node at two places where others read two.
            found = [
                inner[read[0]] if read[0] in inner else given[reads[read]]
                for read in zip(*(arguments(node) for node in nodes), strict=True)
            ]
            following = iter(found)
            inner[nodes[0]] = graph.node_copy(nodes[0], lambda _, following=following: next(following))  # type: ignore[misc]
        graph.output(tuple(inner[copies[0][index]] for index in made))
        graph.lint()
        return fx.GraphModule(self.gm, graph)


def _can_cross(item: Any) -> bool:
    """Whether a value can be an input or a result of compiled code: tensors and sizes that are known when it is compiled."""
    return isinstance(item, Tensor | torch.SymInt) and not free_unbacked_symbols(item)


def _keeps_the_state(nodes: Sequence[fx.Node]) -> None:
    """Raises if a part may leave the interpreter in another state (gradients, autocast, transforms) than it found it in."""
    depth = 0
    grad = torch.is_grad_enabled()
    for node in nodes:
        name = getattr(node.target, "__name__", str(node.target))
        if name == "_set_grad_enabled":
            grad = bool(node.args[0])
        elif name in {"_enter_autocast", "_exit_autocast"}:
            depth += 1 if name == "_enter_autocast" else -1
        elif node.op == "call_function" and example(node) is None and name not in _HARMLESS:
            raise _UncutError(f"{node.format_node()} may change a state that outlives a region")
    if grad != torch.is_grad_enabled() or depth:
        raise _UncutError("a region would leave gradients or autocast in another state than it found them in")


def _symbols(item: Any) -> set[Any]:
    if isinstance(item, list | tuple):
        return set().union(*map(_symbols, item))
    return set(free_symbols(item)) - set(free_unbacked_symbols(item)) if isinstance(item, Tensor | torch.SymInt) else set()
