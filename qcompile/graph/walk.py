"""Ways through a graph: what is constant, what something is computed from, what follows from it, and its value."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from qcompile.errors import ReleasedWeightError
from qcompile.graph.nodes import Constant, aten, concrete, hint, is_call, is_pure, is_released, is_size, literal, value

# Operators that give their input's values in another shape.
VIEWS = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.default,
        aten.squeeze.dims,
        aten.alias.default,
        aten.clone.default,
    }
)


def constant_nodes(graph: fx.Graph, constants: Mapping[fx.Node, Constant]) -> set[fx.Node]:
    """All nodes whose value follows from constants alone."""
    known: set[fx.Node] = set(constants)
    for node in graph.nodes:
        if node not in known and is_pure(node) and all(parent in known for parent in node.all_input_nodes):
            known.add(node)
    return known


def subgraph(
    roots: Iterable[fx.Node], stop: Mapping[fx.Node, Any] | set[fx.Node], leave: Callable[[fx.Node], bool] = lambda _: False
) -> list[fx.Node]:
    """The roots and their ancestors down to (and without) the nodes in `stop` or with `leave`, each after its arguments."""
    order: list[fx.Node] = []
    seen: set[fx.Node] = set(stop)
    stack: list[tuple[fx.Node, bool]] = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            if leave(node):
                continue
            stack.append((node, True))
            stack.extend((parent, False) for parent in reversed(node.all_input_nodes))
    return order


def followers(node: fx.Node) -> set[fx.Node]:
    """The node and all that is computed from it."""
    found = {node}
    queue = [node]
    while queue:
        for user in queue.pop().users:
            if user not in found:
                found.add(user)
                queue.append(user)
    return found


def leaves_of(root: fx.Node, constants: Mapping[fx.Node, Constant]) -> list[fx.Node]:
    """The constants that `root` depends on, in the order of a walk through the arguments."""
    if root in constants:
        return [root]
    found: dict[fx.Node, None] = {}
    for node in subgraph([root], constants):
        found.update((parent, None) for parent in node.all_input_nodes if parent in constants)
    return list(found)


def evaluate(roots: Sequence[fx.Node], feed: Mapping[fx.Node, Any]) -> list[Any]:
    """Values of `roots` from the values of `feed`; an intermediate is dropped as soon as its last user has run.

    Symbolic sizes count with the hint they were traced with. Raises ReleasedWeightError if a value that is needed has no
    memory any more; torch's operators would crash.
    """
    order = subgraph(roots, set(feed), is_size)
    uses: dict[fx.Node, int] = {}
    for node in order:
        for parent in node.all_input_nodes:
            uses[parent] = uses.get(parent, 0) + 1
    for root in roots:
        uses[root] = uses.get(root, 0) + 1
    values: dict[fx.Node, Any] = {}

    def load(node: fx.Node) -> Any:
        if node not in feed:
            return hint(value(node)) if is_size(node) else values[node]
        if isinstance(feed[node], Tensor) and is_released(feed[node]):
            raise ReleasedWeightError(str(node.meta.get("constant", node.name)))
        return feed[node]

    with torch.no_grad():
        for node in order:
            values[node] = run_node(node, load)
            for parent in node.all_input_nodes:
                uses[parent] -= 1
                if uses[parent] == 0:
                    values.pop(parent, None)
    return [load(root) for root in roots]


def run_node(node: fx.Node, load: Any) -> Any:
    """Execute one call node with its arguments' values; symbolic sizes count with the hint they were traced with."""
    if node.op == "get_attr":
        return literal(node)
    args, kwargs = map_arg((node.args, node.kwargs), load)
    args, kwargs = concrete(args), concrete(kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    raise ValueError(f"cannot evaluate {node.op} node {node.name}")


def live_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that the outputs or an effect depend on; the rest waits for `lower` or `cleanup`."""
    roots = [node for node in graph.nodes if node.op == "output" or node.is_impure()]
    return set(subgraph(roots, set()))


def through_views(node: fx.Node) -> fx.Node:
    """The node that this one is a view of, through any number of views."""
    while is_call(node, *VIEWS) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
