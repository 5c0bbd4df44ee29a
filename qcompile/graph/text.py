"""Graphs as text: the canonical key of a function, and the one form for dumps and golden files, in which different graphs differ.

Keys decide what caches give, so they spell out everything; the text is for people: operands by name, constants by path.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from qcompile.graph.nodes import aten, literal, named_arguments, value
from qcompile.graph.walk import live_nodes, subgraph
from qcompile.torch_internals.tensors import HigherOrderOperator, OpOverload


def structural_key(roots: Sequence[fx.Node], stop: Sequence[fx.Node]) -> str:
    """A canonical text of the function from `stop` to `roots`; equal text means equal function of the stops' values."""
    number = {node: f"%{index}" for index, node in enumerate(stop)}
    lines = [f"{number[node]}: {_leaf_type(node)}" for node in stop]
    for node in subgraph(roots, set(stop)):
        args, kwargs = map_arg((node.args, node.kwargs), lambda parent: _Text(number[parent]))
        number[node] = f"%{len(number)}"
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__qualname__", str(node.target))
        if isinstance(node.target, OpOverload):
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


# What is written without quotes and is no node; a node of such a name is marked.
_WORDS = frozenset(
    {
        *_SHORT.values(),
        *(str(kind).removeprefix("torch.") for kind in vars(torch).values() if isinstance(kind, torch.dtype)),
        *("inf", "nan", "None", "True", "False"),
    }
)
_FEW = 16  # elements of a tensor that the traced code spelled out


def type_text(val: Any) -> str:
    """`bf16[4, 32]` for a tensor, the type's name for anything else."""
    if isinstance(val, Tensor):
        name = str(val.dtype).removeprefix("torch.")
        return f"{_SHORT.get(name, name)}[{', '.join(str(size) for size in val.shape)}]"
    if isinstance(val, tuple | list):
        return "(" + ", ".join(type_text(part) for part in val) + ")"
    return "" if val is None else str(val) if isinstance(val, torch.SymInt) else type(val).__name__


def to_text(graph: fx.Graph) -> str:
    """The graph as text, one live node a line; a graph that an operator takes stands indented below its name.

    Operators of ATen and our own have short names. What is at its default is left out, as is None for an operand of our own.
    """
    return "\n".join(_lines(graph)) + "\n"


def _lines(graph: fx.Graph) -> Iterator[str]:
    live = live_nodes(graph)
    nodes = [node for node in graph.nodes if node in live]
    text = _Printer(_names(nodes))
    for node in nodes:
        if node.op == "output":
            yield f"return {text(node.args[0])}"
            continue
        kind = type_text(value(node))
        begin = text(node) + (f": {kind}" if kind else "") + " = "
        if node.op == "placeholder":
            yield begin + _input(node, text(node))
        elif node.op != "get_attr":
            yield begin + text.call(node)
        elif isinstance(literal(node), fx.GraphModule):
            yield begin + "graph:"
            yield from (f"    {line}" for line in _lines(literal(node).graph))
        else:
            yield begin + _literal(literal(node))


def _names(nodes: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """What each node is called: a constant by its path, an input as the model calls it, all else as the graph does."""
    wanted = {node: _wanted(node) for node in nodes}
    count = Counter(wanted.values())
    given = {node.name for node in nodes}
    names: dict[fx.Node, str] = {}
    for node, name in wanted.items():
        free = count[name] == 1 and (name == node.name or name not in given)
        own = node.name if node.name not in _WORDS else f"${node.name}"
        names[node] = name if free and name not in _WORDS else own
    return names


def _wanted(node: fx.Node) -> str:
    path = node.meta.get("constant", "")
    if re.fullmatch(r"[\w.]+", path):
        return f"%{path}"
    name = str(node.meta.get("input", ""))
    return name if re.fullmatch(r"(?!torch\.)[A-Za-z_]\w*(\.\w+)*", name) else node.name


def _input(node: fx.Node, name: str) -> str:
    """What kind of input it is; with strides and device where they are not the usual ones, because nothing else tells them."""
    path, val = node.meta.get("constant", ""), value(node)
    parts = ["input" if not path else "constant" if name.startswith("%") else f"constant {path}"]
    if isinstance(val, Tensor):
        parts += [f"strides {_plain(val.stride())}"] if val.layout is torch.strided and not val.is_contiguous() else []
        parts += [] if val.device.type == "cpu" else [f"on {val.device}"]
    return ", ".join(parts)


def _plain(sizes: Sequence[Any]) -> str:
    return "[" + ", ".join(str(size) for size in sizes) + "]"


def _literal(item: Any) -> str:
    if type(item) not in (Tensor, torch.nn.Parameter) or item.untyped_storage().device.type == "meta":
        return f"literal {type(item).__name__}"
    return f"literal {type_text(item)} {item.tolist()}" if item.numel() <= _FEW else _content(item)


class _Printer:
    """Arguments and calls as text; names: what the nodes are called."""

    def __init__(self, names: Mapping[fx.Node, str]) -> None:
        self.names = names

    def call(self, node: fx.Node) -> str:
        target: Any = node.target
        if isinstance(target, OpOverload):
            return f"{_short(target)}({', '.join(self._operands(node, target))})"
        given = {**node.kwargs, **getattr(target, "settings", {})}
        parts = [self(arg) for arg in node.args] + [f"{key}={self(arg)}" for key, arg in given.items()]
        return f"{_function_name(node)}({', '.join(parts)})"

    def _operands(self, node: fx.Node, target: Any) -> Iterator[str]:
        """By position up to the first that is left out; of our own operators only those that are always there."""
        ours = target.namespace == "qcompile"
        given, by_position = named_arguments(node), True
        for argument in target._schema.arguments:
            text = self(given[argument.name])
            default = argument.has_default_value() and text == self(argument.default_value)
            if default or (ours and given[argument.name] is None):
                by_position = False
                continue
            by_position = by_position and not argument.kwarg_only and (not ours or isinstance(argument.type, torch.TensorType))
            yield text if by_position else f"{argument.name}={text}"

    def __call__(self, arg: Any) -> str:
        if isinstance(arg, fx.Node):
            return self.names[arg]
        if isinstance(arg, tuple):
            return "(" + ", ".join(map(self, arg)) + (",)" if len(arg) == 1 else ")")
        if isinstance(arg, list):
            return "[" + ", ".join(map(self, arg)) + "]"
        if isinstance(arg, dict):
            return "{" + ", ".join(f"{key!r}: {self(part)}" for key, part in arg.items()) + "}"
        if isinstance(arg, slice):
            return f"slice({self(arg.start)}, {self(arg.stop)}, {self(arg.step)})"
        if isinstance(arg, torch.dtype):
            name = str(arg).removeprefix("torch.")
            return _SHORT.get(name, name)
        if isinstance(arg, torch.SymInt | torch.SymFloat | torch.SymBool):
            return f"size({arg})"
        return repr(str(arg)) if isinstance(arg, torch.device) else _short(arg) if isinstance(arg, OpOverload) else repr(arg)


def _short(target: Any) -> str:
    """`mm`, `add.Tensor`, `quantized_linear`; with its namespace if it is another one or ATen has an operator of the name, too."""
    name = str(target).removesuffix(".default")
    if target.namespace == "qcompile" and hasattr(aten, target.overloadpacket.__name__):
        return name
    return name.removeprefix("aten.").removeprefix("qcompile.")


def _function_name(node: fx.Node) -> str:
    target: Any = node.target
    if node.op != "call_function":
        return f"{node.op} {target}"
    if isinstance(target, HigherOrderOperator):
        return f"higher_order.{target.name()}"
    module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", str(target))
    return str(getattr(target, "display_name", "")) or f"{module.lstrip('_')}.{name}"
