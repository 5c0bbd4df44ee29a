"""Finds stretches of a graph that repeat: the same operators on the same shapes with the same edges, copy after copy."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from qcompile.torch_internals.inputs import example
from qcompile.torch_internals.tensors import OpOverload

# Below this many nodes saved, one more entry into compiled code per step is not worth it.
LEAST_SAVED = 40
# Equal operators may have other edges; then the next best period is looked at, up to this many.
MOST_TRIED = 8
_NODE = "<node>"
# Products by the names that torch's functions, methods and operators have for them: nothing is fused into those but what we fuse.
_PRODUCTS = frozenset(["linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"])


@dataclass(frozen=True, slots=True, order=True)
class Repeat:
    """Copy number i of `count` is the nodes from start + i * period to start + (i + 1) * period."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count

    @property
    def saved(self) -> int:
        """Nodes that need not be compiled; at least LEAST_SAVED of them take two copies or more."""
        return (self.count - 1) * self.period

    def copies(self) -> list[range]:
        return [range(at, at + self.period) for at in range(self.start, self.stop, self.period)]


def find_repeats(nodes: Sequence[fx.Node], looks: Callable[[fx.Node], Any]) -> list[Repeat]:
    """The repeats among these nodes (in topological order, calls only), from first to last; they do not overlap.

    looks(node): what compiled code assumes of a value that comes from outside a copy.
    """
    at = {node: index for index, node in enumerate(nodes)}
    numbers: dict[Any, int] = {}
    labels = torch.tensor([numbers.setdefault(_label(node), len(numbers)) for node in nodes], dtype=torch.int64, device="cpu")
    found: list[Repeat] = []
    open_ranges = [(0, len(nodes))]
    while open_ranges:
        low, high = open_ranges.pop()
        cut = (_well_cut(nodes, at, best, high, labels) for best in _candidates(labels, low, high))
        repeat = next((same for best in cut if (same := _same_edges(nodes, at, best, looks)) is not None), None)
        if repeat is not None:
            found.append(repeat)
            open_ranges += [(low, repeat.start), (repeat.stop, high)]
    return sorted(found)


def signature(item: Any) -> Any:
    """What compiled code assumes of a value: dtype, shape, strides, device; sizes with symbols by their expression."""
    if isinstance(item, Tensor):
        return str(item.dtype), str(tuple(item.shape)), str(item.stride()), str(item.device)
    if isinstance(item, list | tuple):
        return tuple(signature(part) for part in item)
    return str(item)


def arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among a node's arguments, in their order, repeated where they are."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found


def _label(node: fx.Node) -> Any:
    skeleton = map_arg((node.args, dict(node.kwargs)), lambda _: _NODE)
    unique = node.name if node.op not in {"call_function", "call_method"} else ""
    return node.op, str(node.target), repr(skeleton), signature(example(node)), unique


def _candidates(labels: Tensor, low: int, high: int) -> list[Repeat]:
    """Repeats of labels between two places, one for each period, those that save most first; among equals the shortest period."""
    found = []
    for period in range(1, (high - low) // 2 + 1):
        differs = (labels[low + period : high] != labels[low : high - period]).nonzero().flatten()
        edges = torch.cat(
            (
                torch.tensor([-1], dtype=torch.int64, device="cpu"),
                differs,
                torch.tensor([high - low - period], dtype=torch.int64, device="cpu"),
            )
        )
        runs = edges.diff() - 1
        longest = int(runs.argmax())
        repeat = Repeat(low + int(edges[longest]) + 1, period, int(runs[longest]) // period + 1)
        if repeat.saved >= LEAST_SAVED:
            found.append(repeat)
    return sorted(found, key=lambda repeat: repeat.saved, reverse=True)[:MOST_TRIED]


def _well_cut(nodes: Sequence[fx.Node], at: Mapping[fx.Node, int], repeat: Repeat, high: int, labels: Tensor) -> Repeat:
    """The same repeat, begun where a cut costs least: not among products that read one input and become one call, behind a
    product, with little crossing.

    Inductor fuses element-wise work into loops, never into products; a cut behind such a call loses no fusion.
    """
    stop = repeat.stop
    while stop < high and labels[stop] == labels[stop - repeat.period]:
        stop += 1
    starts = range(repeat.start, min(repeat.start + repeat.period, stop))
    candidates = (Repeat(start, repeat.period, (stop - start) // repeat.period) for start in starts)

    def cost(candidate: Repeat) -> tuple[int, bool, int, int]:
        inner = candidate.start + candidate.period  # the first cut between two copies
        crossing = _crossing(nodes, at, candidate.period, inner)
        split = sum(_parts_products(node, at, inner) for node in crossing)
        return split, not _is_product(nodes[inner - 1]), -candidate.count, sum(map(_bytes, crossing))

    return min((candidate for candidate in candidates if candidate.saved >= LEAST_SAVED), key=cost, default=repeat)


def _is_product(node: fx.Node) -> bool:
    target: Any = node.target
    if isinstance(target, OpOverload):
        name = target.overloadpacket.__name__
        return name in _PRODUCTS or name.startswith("_scaled_dot_product")
    return (target if isinstance(target, str) else getattr(target, "__name__", "")) in _PRODUCTS


def _crossing(nodes: Sequence[fx.Node], at: Mapping[fx.Node, int], period: int, cut: int) -> list[fx.Node]:
    """What is made within a period before the cut and read behind it."""
    return [node for node in nodes[max(cut - period, 0) : cut] if any(at.get(user, len(nodes)) >= cut for user in node.users)]


def _parts_products(node: fx.Node, at: Mapping[fx.Node, int], cut: int) -> bool:
    """Whether products on both sides of the cut read this value."""
    places = [at[user] >= cut for user in node.users if user in at and _is_product(user)]
    return any(places) and not all(places)


def _bytes(node: fx.Node) -> int:
    item = example(node)
    return item.element_size() * math.prod(_hint(size) for size in item.shape) if isinstance(item, Tensor) else 0


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else 64  # only cuts of one graph are compared


def _same_edges(
    nodes: Sequence[fx.Node], at: Mapping[fx.Node, int], repeat: Repeat, looks: Callable[[fx.Node], Any]
) -> Repeat | None:
    """The longest stretch of copies whose edges agree too: inside a copy by place, from outside by what the value looks like."""

    def shape_of(copy: range) -> Any:
        return [
            [at[arg] - copy.start if at.get(arg, -1) in copy else looks(arg) for arg in arguments(nodes[index])] for index in copy
        ]

    shapes = [shape_of(copy) for copy in repeat.copies()]
    best, begin = (0, 0), 0
    for index in range(1, repeat.count + 1):
        if index == repeat.count or shapes[index] != shapes[begin]:
            best = max(best, (index - begin, -begin))
            begin = index
    found = Repeat(repeat.start - best[1] * repeat.period, repeat.period, best[0])
    return found if found.saved >= LEAST_SAVED else None
