"""Turns Python functions on tensors into graph nodes: traced once on fake tensors, copied to every place that needs them."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from qcompile.graph.fake import imitation, within
from qcompile.graph.nodes import literal, value
from qcompile.torch_internals.aot import make_fx


class Emitter:
    """Emits functions into graphs. A function is traced once for each `key` and kind of arguments.

    decompositions: operators to take apart while tracing (Inductor's table for code that Inductor compiles).
    """

    def __init__(self, decompositions: Mapping[Any, Any] | None = None) -> None:
        self.decompositions = dict(decompositions or {})
        self._traced: dict[Hashable, fx.GraphModule] = {}

    def __call__(self, graph: fx.Graph, function: Callable[..., Any], nodes: Sequence[fx.Node | None], key: Hashable) -> Any:
        """Nodes at the graph's insertion point that compute `function(*nodes)`; what it returns, as nodes.

        The function must be straight-line tensor code: no Python decisions on values, no .item(). None arguments stay None.
        key: equal only for functions that do the same to arguments of the same shapes and dtypes.
        """
        piece = self.trace(function, [None if node is None else _fake(node) for node in nodes], key)
        return _inline(graph, piece, [node for node in nodes if node is not None])

    def trace(self, function: Callable[..., Any], fakes: Sequence[Tensor | None], key: Hashable) -> fx.GraphModule:
        """The function as a graph of its own, traced now or before; arguments and key as above."""
        missing = [fake is None for fake in fakes]
        given = [fake for fake in fakes if fake is not None]
        full = (key, tuple(missing), *((str(f.shape), str(f.stride()), f.dtype, str(f.device)) for f in given))
        if full not in self._traced:
            self._traced[full] = self._trace(lambda *args: function(*_spread(args, missing)), given)
        return self._traced[full]

    def _trace(self, function: Callable[..., Any], fakes: Sequence[Tensor]) -> fx.GraphModule:
        with within(fakes), torch.no_grad():
            # Two nodes copied from one traced piece share a fake tensor; the tracer tells arguments apart by the object.
            apart = [imitation(fake) for fake in fakes]
            traced: fx.GraphModule = make_fx(function, decomposition_table=self.decompositions, tracing_mode="real")(*apart)
            return traced


def _spread(args: Sequence[Any], missing: Sequence[bool]) -> list[Any]:
    left = iter(args)
    return [None if absent else next(left) for absent in missing]


def _fake(node: fx.Node) -> Tensor:
    fake = value(node)
    if not isinstance(fake, Tensor):
        raise TypeError(f"{node.name} has no known shape and dtype")
    return fake


def _inline(graph: fx.Graph, piece: fx.GraphModule, arguments: Sequence[fx.Node]) -> Any:
    copies: dict[fx.Node, Any] = {}
    inputs = iter(arguments)
    for node in piece.graph.nodes:
        if node.op == "placeholder":
            copies[node] = next(inputs)
        elif node.op == "output":
            return map_arg(node.args[0], lambda item: copies[item])
        elif node.op == "get_attr":
            copies[node] = _literal(graph, literal(node))
        else:
            copies[node] = graph.node_copy(node, lambda item: copies[item])
    raise AssertionError("a graph without output")


def _literal(graph: fx.Graph, tensor: Tensor) -> fx.Node:
    """A tensor that the function spelled out, as a constant of this graph."""
    name = f"_qcompile_literal_{id(tensor):x}"
    if graph.owning_module is not None:
        setattr(graph.owning_module, name, tensor)
    node = graph.create_node("get_attr", name)
    node.meta.update(val=tensor, literal=tensor)
    return node
