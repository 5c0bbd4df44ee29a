"""Cuts a graph at its repeats into parts: one module for all copies of a repeat, one for each stretch between them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_symbols, free_unbacked_symbols

from qcompile.graph import aten, is_call, value
from qcompile.regions.repeats import Repeat, arguments, find_repeats

log = logging.getLogger(__name__)


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


def plan(gm: fx.GraphModule) -> Plan | None:
    """How to compute the graph region by region, or None: nothing repeats, or it could not be done safely.

    The graph is left as it is, but for writes to its inputs, which move up to where their value is known.
    """
    odd = next((node for node in gm.graph.nodes if not _is_plain(node)), None)
    if odd is not None:
        log.debug("not cut into regions because of %s", odd.format_node())
        return None
    _raise_writes(gm.graph)
    calls = [node for node in gm.graph.nodes if node.op not in {"placeholder", "output"}]
    repeats = find_repeats(calls)
    if not repeats:
        return None
    cutter = _Cutter(gm)
    at = 0
    for repeat in repeats:
        complete = cutter.stretch(calls[at : repeat.start]) and cutter.repeat(
            [calls[copy.start : copy.stop] for copy in repeat.copies()]
        )
        if not complete:
            return None
        at = repeat.stop
    if not cutter.stretch(calls[at:]):
        return None
    return Plan(tuple(cutter.modules), tuple(cutter.parts), tuple(repeats))


def _is_plain(node: fx.Node) -> bool:
    """Not among them: calls that write (but to the graph's inputs), draw random numbers, or carry a graph of their own."""
    if node.op in {"placeholder", "output"} or _is_write(node):
        return True
    target = node.target
    if node.op != "call_function" or _is_unbacked(value(node)):
        return False
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return not isinstance(target, torch._ops.HigherOrderOperator)


def _is_unbacked(item: Any) -> bool:
    return isinstance(item, Tensor | torch.SymInt) and bool(free_unbacked_symbols(item))


def _is_write(node: fx.Node) -> bool:
    """Whether the node gives an input of the graph a new value, as AOTAutograd does at the end of a graph."""
    if not is_call(node, aten.copy_.default) or any(user.op != "output" for user in node.users):
        return False
    return isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"


def _views(node: fx.Node) -> set[fx.Node]:
    """The node and everything that shows the same memory."""
    found = {node}
    stack = [node]
    while stack:
        for user in stack.pop().users:
            if user not in found and user.op == "call_function" and _shares(user.target):
                found.add(user)
                stack.append(user)
    return found


def _shares(target: Any) -> bool:
    """Whether the result may show an argument's memory; operator.getitem and the like may."""
    return not isinstance(target, torch._ops.OpOverload) or any(item.alias_info for item in target._schema.returns)


def _raise_writes(graph: fx.Graph) -> None:
    """Move each write to an input of the graph behind the value it writes, if nothing reads the old content after that."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    for write in [node for node in graph.nodes if _is_write(node)]:
        target, source = write.args[0], write.args[1]
        if not isinstance(source, fx.Node) or source.op != "call_function" or write.users:
            continue
        readers = {user for item in _views(target) for user in item.users} - {write}
        if all(position[reader] <= position[source] for reader in readers):
            source.append(write)


class _Cutter:
    """Makes modules and their calls, stretch by stretch."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.symbols = {
            val.node.expr: node
            for node in gm.graph.find_nodes(op="placeholder")
            if isinstance(val := value(node), torch.SymInt) and val.node.expr.is_Symbol
        }
        self.modules: list[fx.GraphModule] = []
        self.parts: list[Part] = []

    def stretch(self, nodes: Sequence[fx.Node]) -> bool:
        return not nodes or self.repeat([nodes])

    def repeat(self, copies: Sequence[Sequence[fx.Node]]) -> bool:
        """One module for all copies (already known to be equal); False if they cannot be cut out."""
        reads = self._reads(copies)
        if reads is None:
            return False
        inputs = [[row[number] for row in reads] for number in range(len(copies))]
        if not all(_unshared(copy, given) for copy, given in zip(copies, inputs, strict=True)):
            return False
        outside = [{user for node in copy for user in node.users} - set(copy) for copy in copies]
        made = [
            index
            for index in range(len(copies[0]))
            if any(set(copy[index].users) & others for copy, others in zip(copies, outside, strict=True))
        ]
        self.modules.append(self._module(copies, reads, made))
        for copy, given in zip(copies, inputs, strict=True):
            self.parts.append(Part(len(self.modules) - 1, tuple(given), tuple(copy[index] for index in made)))
        return True

    def _reads(self, copies: Sequence[Sequence[fx.Node]]) -> dict[tuple[fx.Node, ...], int] | None:
        """The inputs, numbered: what each copy reads from outside at one place. Places are one input if all copies read alike."""
        reads: dict[tuple[fx.Node, ...], int] = {}
        inner = set(copies[0])
        for nodes in zip(*copies, strict=True):
            for read in zip(*(arguments(node) for node in nodes), strict=True):
                if read[0] not in inner:
                    reads.setdefault(read, len(reads))
        symbols = set().union(*(_symbols(value(node)) for node in [*copies[0], *(read[0] for read in reads)]))
        if not symbols <= set(self.symbols):
            return None
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
            given.append(graph.placeholder(f"arg{number}_1"))
            given[-1].meta = {key: read[0].meta[key] for key in ("val", "tensor_meta") if key in read[0].meta}
        inner: dict[fx.Node, fx.Node] = {}
        places = list(zip(*copies, strict=True))
        # Writes go last, where AOTAutograd puts them too: Inductor then writes in place.
        for nodes in sorted(places, key=lambda nodes: _is_write(nodes[0])):
            # By place, not by node: the first copy may read one node at two places where others read two.
            found = [
                inner[read[0]] if read[0] in inner else given[reads[read]]
                for read in zip(*(arguments(node) for node in nodes), strict=True)
            ]
            following = iter(found)
            inner[nodes[0]] = graph.node_copy(nodes[0], lambda _, following=following: next(following))  # type: ignore[misc]
        outputs = [copies[0][index] for index in made]
        last = graph.output(tuple(inner[node] for node in outputs))
        # The next part was planned for these strides.
        last.meta["user_visible_output_idxs"] = [index for index, node in enumerate(outputs) if isinstance(value(node), Tensor)]
        graph.lint()
        return fx.GraphModule(self.gm, graph)


def _unshared(nodes: Sequence[fx.Node], inputs: Sequence[fx.Node]) -> bool:
    """Whether no input that is written is given a second time, or as a view: its compiled code could read too late."""
    for write in (node for node in nodes if _is_write(node)):
        target: Any = write.args[0]
        shared = _views(target)
        if sum(item in shared for item in inputs) > 1:
            return False
    return True


def _symbols(item: Any) -> set[Any]:
    if isinstance(item, list | tuple):
        return set().union(*map(_symbols, item))
    return set(free_symbols(item)) if isinstance(item, Tensor | torch.SymInt) else set()
