"""Graph tools that several passes share: constants, cones, canonical keys, evaluation, and the text form of a graph."""

import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import optimization_hint, statically_known_true
from torch.fx.node import map_arg

from qcompile.errors import ReleasedWeightError

aten = torch.ops.aten
prims = torch.ops.prims

# Torch's own guess of a size that depends on data is 8192, which a probe would have to fill.
_DATA_DEPENDENT = 24

# What counts as a packed or low-bit leaf: the dtypes quantized weights are stored in.
_LOW_BIT_NAMES = """
int8 uint8 int16 uint16 int32 uint32
float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2
uint1 uint2 uint3 uint4 uint5 uint6 uint7 int1 int2 int3 int4 int5 int6 int7
"""
LOW_BIT = frozenset(kind for name in _LOW_BIT_NAMES.split() if (kind := getattr(torch, name, None)) is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A graph input whose value is fixed between calls: `path` is the parameter's path, `tensor` its value now.

    module: path of what owns it, where that is not the path without its last step (a tensor that is a part of another one).
    """

    path: str
    tensor: Tensor
    module: str = ""

    @property
    def layer(self) -> str:
        """What the layer is called that this belongs to."""
        return self.module or self.path.rpartition(".")[0] or self.path

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal while the value is, as long as tensor and storage live: `p.data = t` changes only the storage.

        The storage's own address rather than that of its memory, so that a weight stays itself when its memory is released.
        """
        return id(self.tensor), self.tensor._version, self.tensor.untyped_storage()._cdata, self.tensor.storage_offset()


def is_released(tensor: Tensor) -> bool:
    """Whether the tensor's memory was freed by option release."""
    return tensor.numel() > 0 and tensor.untyped_storage().size() == 0


def is_size(node: fx.Node) -> bool:
    """Whether the node is a symbolic size."""
    return isinstance(value(node), torch.SymInt)


def value(node: fx.Node) -> Any:
    """The node's fake value (shape, dtype, device)."""
    return node.meta.get("val")


def is_call(node: Any, *targets: Any) -> bool:
    """Whether `node` is a call of one of these functions or operator overloads."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_pure(node: fx.Node) -> bool:
    """Whether the node's value depends on its arguments alone and computing it changes nothing."""
    if node.op == "get_attr":
        return isinstance(literal(node), Tensor)
    if node.op != "call_function":
        return False
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return target is operator.getitem


def lacks_value(node: fx.Node) -> bool:
    """Whether the node has a result and nothing says what it looks like; an assertion about a size, say, has no result."""
    if node.op != "call_function" or "val" in node.meta or getattr(node.target, "__name__", "").endswith("copy_"):
        return False
    schema = getattr(node.target, "_schema", None)
    return bool(node.users) if schema is None else bool(schema.returns)


def literal(node: fx.Node) -> Any:
    """The tensor that the traced code spelled out (torch.tensor([0, 4, 8]) in a forward), from its get_attr node."""
    if "literal" not in node.meta:
        item: Any = node.graph.owning_module
        for part in str(node.target).split("."):
            item = getattr(item, part, None)
        node.meta["literal"] = item
    return node.meta["literal"]


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


def hint(size: Any) -> Any:
    """A symbolic size's value in the call that was traced; anything else as it is.

    A size that depends on data has none. It counts as one number that many others divide, or as near to it as the graph allows, in
    all expressions alike.
    """
    return optimization_hint(size, fallback=_DATA_DEPENDENT) if isinstance(size, torch.SymInt) else size


def same_sizes(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether two shapes are the same whatever the symbolic sizes are; asking adds no guard, and needs no hint."""
    return len(left) == len(right) and all(statically_known_true(a == b) for a, b in zip(left, right, strict=True))


def concrete(item: Any) -> Any:
    """An argument with the hints of its symbolic sizes in their place."""
    if isinstance(item, torch.SymInt):
        return hint(item)
    if isinstance(item, list | tuple) and not isinstance(item, torch.Size):
        return type(item)(concrete(part) for part in item)
    if isinstance(item, dict):
        return {key: concrete(part) for key, part in item.items()}
    return item


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


def live_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that the outputs or an effect depend on; the rest waits for `lower` or `cleanup`."""
    roots = [node for node in graph.nodes if node.op == "output" or node.is_impure()]
    return set(subgraph(roots, set()))


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
