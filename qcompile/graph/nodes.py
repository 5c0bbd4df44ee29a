"""What one node of a graph is: a constant, a size, a call of an operator, pure or not; and its value, or that of its size."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.torch_internals.sizes import optimization_hint, statically_known_true
from qcompile.torch_internals.tensors import OpOverload, storage_key, version

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
        return id(self.tensor), version(self.tensor), storage_key(self.tensor), self.tensor.storage_offset()


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
    target: Any = node.target
    if isinstance(target, OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return target is operator.getitem


def lacks_value(node: fx.Node) -> bool:
    """Whether the node has a result and nothing says what it looks like; an assertion about a size, say, has no result."""
    if node.op != "call_function" or "val" in node.meta or getattr(node.target, "__name__", "").endswith("copy_"):
        return False
    schema = getattr(node.target, "_schema", None)
    return bool(node.users) if schema is None else bool(schema.returns)


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator's call by name; those left out have their defaults."""
    target: Any = node.target
    assert isinstance(target, OpOverload)
    schema = target._schema.arguments
    given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    given.update(zip((argument.name for argument in schema), node.args, strict=False))
    given.update(node.kwargs)
    return given


def literal(node: fx.Node) -> Any:
    """The tensor that the traced code spelled out (torch.tensor([0, 4, 8]) in a forward), from its get_attr node."""
    if "literal" not in node.meta:
        item: Any = node.graph.owning_module
        for part in str(node.target).split("."):
            item = getattr(item, part, None)
        node.meta["literal"] = item
    return node.meta["literal"]


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
