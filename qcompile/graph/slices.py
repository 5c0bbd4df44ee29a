"""Evaluates a part of a graph's result, such as some rows of a dense weight, and computes little more than that part needs."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from qcompile.graph.axis import UNUSED, Axis
from qcompile.graph.nodes import concrete, hint, is_size, literal, value
from qcompile.graph.slice_rules import needs_of, run
from qcompile.graph.walk import subgraph

# Makes the values of an input for the shape that is asked for.
Source = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True, slots=True)
class Root:
    """A node whose value is wanted; axes: which of its dimensions each label runs along (absent: the whole is wanted)."""

    node: fx.Node
    axes: Mapping[str, int]


class Slices:
    """The values of some nodes for ranges of a few labels ("n": rows of a weight, "m": rows of an input).

    A label starts at a dimension of each root and is followed to the inputs. A node is computed for the range alone if all who
    read it want the same range of the same dimension and its operator is known (qcompile.graph.slice_rules); every other node is
    computed as a whole, once. So the result is always right; how much is saved depends on the graph.

    roots   what is wanted
    sizes   label -> its whole length
    feed    values of the graph's inputs; a function makes the values of an input that has none yet
    wide    nodes that compute in float64 what they would compute in another float
    """

    def __init__(
        self,
        roots: Sequence[Root],
        sizes: Mapping[str, int],
        feed: Mapping[fx.Node, Any],
        wide: Collection[fx.Node] | None = None,
    ) -> None:
        self.roots, self.sizes, self.feed, self.wide = tuple(roots), dict(sizes), dict(feed), wide
        order = subgraph([root.node for root in roots], set(feed), is_size)
        self._axes: dict[fx.Node, dict[str, Axis]] = {}
        self._needs: dict[fx.Node, dict[str, dict[fx.Node, Axis | None]]] = {}
        self._plan(order)
        self._order = [node for node in order if self._axes.get(node)]
        self._before = [node for node in order if node in self._axes and not self._axes[node]]
        self._whole: dict[fx.Node, Any] | None = None

    def align(self, label: str) -> int:
        """Where a range of this label may start: at multiples of this number."""
        found = [axes[label].per.denominator for axes in self._axes.values() if label in axes]
        found += [axis.per.denominator for needs in self._needs.values() for axis in needs.get(label, {}).values() if axis]
        return math.lcm(1, *found)

    def evaluate(self, ranges: Mapping[str, range]) -> list[Any]:
        """The roots' values for these ranges; a label without one counts whole."""
        spans = {label: ranges.get(label, range(size)) for label, size in self.sizes.items()}
        if self._whole is None:
            self._whole = self._evaluate_whole()
        values: dict[fx.Node, Any] = {}
        uses = Counter(parent for node in self._order for parent in node.all_input_nodes)
        uses.update(root.node for root in self.roots)
        for node in self._order:
            arguments = {parent: self._load(parent, self._wanted(node, parent), spans, values) for parent in node.all_input_nodes}
            values[node] = self._run(node, spans, arguments)
            _drop(node, uses, values)
        axes = [{label: Axis(dim) for label, dim in root.axes.items()} for root in self.roots]
        return [self._load(root.node, wanted, spans, values) for root, wanted in zip(self.roots, axes, strict=True)]

    def _wanted(self, node: fx.Node, parent: fx.Node) -> dict[str, Axis | None]:
        return {label: needs.get(parent) for label, needs in self._needs[node].items()}

    def _load(
        self, node: fx.Node, wanted: Mapping[str, Axis | None], spans: Mapping[str, range], values: dict[fx.Node, Any]
    ) -> Any:
        """The node's value, narrowed to what a reader wants of it."""
        if UNUSED in wanted.values():
            return None
        whole = self._whole or {}
        axes = self._axes.get(node, {})
        if is_size(node):
            return hint(value(node))
        if node not in values and node not in whole and callable(self.feed.get(node)):
            values[node] = self.feed[node](_shape(node, axes, spans))
        found = values if node in values else whole if node in whole else self.feed
        item = found[node]
        for label, axis in wanted.items():
            if axis is not None and label not in axes:
                item = _narrow(item, axis, spans[label])
        return item

    def _plan(self, order: Sequence[fx.Node]) -> None:
        demands: dict[fx.Node, dict[str, set[Axis | None]]] = {}

        def demand(node: fx.Node, label: str, axis: Axis | None) -> None:
            if axis is not UNUSED:
                demands.setdefault(node, {}).setdefault(label, set()).add(axis)

        for root in self.roots:
            for label in self.sizes:
                demand(root.node, label, Axis(root.axes[label], count=self.sizes[label]) if label in root.axes else None)
        for node in reversed(order):
            asked = demands.get(node, {})
            if any(not asked.get(label) for label in self.sizes):
                continue  # nobody needs it
            axes, needs = self._axes.setdefault(node, {}), self._needs.setdefault(node, {})
            for label in self.sizes:
                axis = _only(asked[label])
                found = None if axis is None else needs_of(node, axis)
                if axis is not None and found is not None:
                    axes[label], needs[label] = axis, found
                for parent in node.all_input_nodes:
                    demand(parent, label, None if found is None else found.get(parent))
        for node, given in self.feed.items():
            wanted = {label: _only(demands.get(node, {}).get(label, set())) for label in self.sizes} if callable(given) else {}
            self._axes[node] = {label: axis for label, axis in wanted.items() if axis is not None}

    def _evaluate_whole(self) -> dict[fx.Node, Any]:
        """The values of the nodes that are computed as a whole and read by others."""
        read = {parent for node in self._order for parent in node.all_input_nodes} | {root.node for root in self.roots}
        uses = Counter(parent for node in self._before for parent in node.all_input_nodes)
        # What was made for an input stays: others must read the same values.
        made = [node for node, given in self.feed.items() if callable(given)]
        uses.update(node for node in (*self._before, *made) if node in read)
        spans = {label: range(size) for label, size in self.sizes.items()}
        values: dict[fx.Node, Any] = {}
        for node in self._before:
            arguments = {parent: self._load(parent, {}, spans, values) for parent in node.all_input_nodes}
            values[node] = self._run(node, spans, arguments)
            _drop(node, uses, values)
        return {node: item for node, item in values.items() if node in read and (node not in self.feed or node in made)}

    def _run(self, node: fx.Node, spans: Mapping[str, range], arguments: Mapping[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return literal(node)
        args, kwargs = map_arg((node.args, node.kwargs), lambda parent: arguments[parent])
        args, kwargs = concrete(args), concrete(kwargs)
        if self.wide is not None and node in self.wide:
            args, kwargs = _widened(args), _widened(kwargs)
        shape = _shape(node, self._axes[node], spans) if isinstance(value(node), Tensor) else None
        with torch.no_grad():
            return run(node, args, kwargs, shape if self._axes[node] else None)


def _drop(node: fx.Node, uses: Counter[fx.Node], values: dict[fx.Node, Any]) -> None:
    """Forget the arguments that the node was the last to read."""
    for parent in node.all_input_nodes:
        uses[parent] -= 1
        if uses[parent] == 0:
            values.pop(parent, None)


def _widened(item: Any) -> Any:
    """Floating-point tensors and dtypes as float64."""
    if isinstance(item, Tensor):
        return item.to(torch.float64) if item.is_floating_point() else item
    if isinstance(item, torch.dtype):
        return torch.float64 if item.is_floating_point else item
    if isinstance(item, list | tuple):
        return type(item)(_widened(part) for part in item)
    return {key: _widened(part) for key, part in item.items()} if isinstance(item, dict) else item


def _only(axes: set[Axis | None]) -> Axis | None:
    """The one axis that all readers ask for, None if they differ."""
    return next(iter(axes)) if len(axes) == 1 else None


def _shape(node: fx.Node, axes: Mapping[str, Axis], spans: Mapping[str, range]) -> list[int]:
    shape = [int(hint(size)) for size in value(node).shape]
    for label, axis in axes.items():
        shape[axis.dim] = len(axis.indices(spans[label]))
    return shape


def _narrow(item: Any, axis: Axis, span: range) -> Any:
    if isinstance(item, list | tuple):
        return type(item)(_narrow(part, axis, span) for part in item)
    indices = axis.indices(span)
    return item.narrow(axis.dim, indices.start, len(indices))


def pieces(size: int, each: int, align: int = 1) -> list[range]:
    """The whole of a label, in ranges of about `each`, which start at multiples of `align`."""
    step = max(align, each // align * align)
    return [range(start, min(start + step, size)) for start in range(0, size, step)]


def spread(size: int, each: int, count: int, align: int = 1) -> list[range]:
    """At most `count` of the `pieces`: the first, the last and some between them."""
    found = pieces(size, each, align)
    if len(found) <= count:
        return found
    places = sorted({round(index * (len(found) - 1) / (count - 1)) for index in range(count)}) if count > 1 else [0]
    return [found[place] for place in places]
