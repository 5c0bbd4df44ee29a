"""Graphs as text: the canonical key of a function, and the one form for dumps, golden files and reports."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from qcompile.graph.nodes import literal, value
from qcompile.graph.walk import live_nodes, subgraph


def structural_key(roots: Sequence[fx.Node], stop: Sequence[fx.Node]) -> str:
    """A canonical text of the function from `stop` to `roots`; equal text means equal function of the stops' values."""
    number = {node: f"%{index}" for index, node in enumerate(stop)}
    lines = [f"{number[node]}: {_leaf_type(node)}" for node in stop]
    for node in subgraph(roots, set(stop)):
        args, kwargs = map_arg((node.args, node.kwargs), lambda parent: _Text(number[parent]))
        number[node] = f"%{len(number)}"
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__qualname__", str(node.target))
        if isinstance(node.target, torch._ops.OpOverload):
            name = str(node.target)
        elif node.op == "get_attr":
            name = _content(literal(node))
        lines.append(f"{number[node]} = {name}{args!r}{dict(kwargs)!r}")
    lines.append("return " + ", ".join(number[root] for root in roots))
    return "\n".join(lines)


def _content(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"literal {tensor.dtype}{list(tensor.shape)} {hashlib.sha256(raw).hexdigest()}"


class _Text(str):
    def __repr__(self) -> str:
        return str(self)


def _leaf_type(node: fx.Node) -> str:
    val = value(node)
    return f"{val.dtype}{list(val.shape)}{list(val.stride())}" if isinstance(val, Tensor) else type(val).__name__


_SHORT = {
    "bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64", "int8": "i8", "uint8": "u8", "int16": "i16",
    "int32": "i32", "int64": "i64", "bool": "b1",
}  # fmt: skip


def type_text(val: Any) -> str:
    """`bf16[4, 32]` for a tensor, the type's name for anything else."""
    if isinstance(val, Tensor):
        name = str(val.dtype).removeprefix("torch.")
        return f"{_SHORT.get(name, name)}[{', '.join(str(size) for size in val.shape)}]"
    if isinstance(val, tuple | list):
        return "(" + ", ".join(type_text(part) for part in val) + ")"
    return "" if val is None else str(val) if isinstance(val, torch.SymInt) else type(val).__name__


def to_text(graph: fx.Graph) -> str:
    """The graph as text, one live node a line: the one form for dumps, golden files and reports."""
    return "\n".join(_lines(graph)) + "\n"


def _lines(graph: fx.Graph) -> Iterator[str]:
    live = live_nodes(graph)
    for node in graph.nodes:
        if node not in live:
            continue
        kind = type_text(value(node))
        typed = f": {kind}" if kind else ""
        if node.op == "placeholder":
            constant = node.meta.get("constant")
            yield f"{node.name}{typed} = {'constant ' + constant if constant else 'input'}"
        elif node.op == "output":
            yield f"return {_args_text(node.args[0])}"
        else:
            name = str(node.target) if isinstance(node.target, str | torch._ops.OpOverload) else _function_name(node.target)
            parts = [_args_text(arg) for arg in node.args] + [f"{key}={_args_text(arg)}" for key, arg in node.kwargs.items()]
            yield f"{node.name}{typed} = {name}({', '.join(parts)})"


def _function_name(target: Any) -> str:
    return str(getattr(target, "display_name", None) or getattr(target, "__name__", target))


def _args_text(arg: Any) -> str:
    if isinstance(arg, fx.Node):
        return arg.name
    if isinstance(arg, list | tuple):
        return "[" + ", ".join(_args_text(part) for part in arg) + "]"
    if isinstance(arg, Tensor):
        return f"tensor<{type_text(arg)}>"
    return str(arg).removeprefix("torch.") if isinstance(arg, torch.dtype) else repr(arg) if isinstance(arg, str) else str(arg)
