"""Turns Python functions on tensors into graph nodes: constants' code as plain calls, run-time code as ATen with fake values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.proxy import GraphAppendingTracer, TraceError

from qcompile.graph import value


def emit_plain(graph: fx.Graph, function: Callable[..., Any], nodes: Sequence[fx.Node | None], name: str) -> Any:
    """Nodes at the graph's insertion point that compute `function(*nodes)`, as the torch calls it is made of.

    For code on constants only (`fold` runs it). What cannot be traced becomes one call of the function itself, called `name`.
    """
    tracer = GraphAppendingTracer(graph)
    before = set(graph.nodes)
    try:
        result = function(*(None if node is None else fx.Proxy(node, tracer) for node in nodes))
        return fx.node.map_aggregate(result, lambda item: item.node if isinstance(item, fx.Proxy) else item)
    except (TraceError, TypeError, RuntimeError, AttributeError, ValueError, IndexError):
        for node in reversed([node for node in graph.nodes if node not in before]):
            graph.erase_node(node)
    call = graph.call_function(_Opaque(function, name), tuple(nodes))
    return call


class _Opaque:
    """A function as a call target with a readable, unique name."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.display_name = self.__name__ = self.__qualname__ = name

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def trace_aten(function: Callable[..., Any], fakes: Sequence[Any], table: Mapping[Any, Any]) -> fx.GraphModule:
    """`function` on fake tensors as an ATen graph with fake values on every node."""
    with torch.no_grad():
        return make_fx(function, decomposition_table=dict(table), tracing_mode="real")(*fakes)


def inline(graph: fx.Graph, piece: fx.GraphModule, arguments: Sequence[fx.Node]) -> Any:
    """Copy a traced piece to the graph's insertion point; returns what it returns, as nodes."""
    copies: dict[fx.Node, Any] = {}
    inputs = iter(arguments)
    for node in piece.graph.nodes:
        if node.op == "placeholder":
            copies[node] = next(inputs)
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], lambda item: copies[item])
        elif node.op == "get_attr":
            raise ValueError("a kernel's call must not capture tensors")
        else:
            copies[node] = graph.node_copy(node, lambda item: copies[item])
    raise AssertionError("a graph without output")


def fake(node: fx.Node) -> Tensor:
    """The node's fake value, which must be a tensor."""
    result = value(node)
    assert isinstance(result, Tensor)
    return result
