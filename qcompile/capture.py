"""Finds out which inputs of a captured graph are constants, and what they are called in the user's model."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.graph import Constant

_STEP = re.compile(r"\['([^']*)'\]|\[(\d+)\]|\.([A-Za-z_]\w*)")
_CONTAINERS = {"_modules", "_parameters", "_buffers", "__dict__"}


def dynamo_constants(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> dict[int, Constant]:
    """Constant inputs of the graph that Dynamo hands to a back end, by position.

    Constant is what hangs on a module (parameters, buffers, tensor attributes) and what the code reads from its globals or closure;
    arguments of the compiled function and what they contain are not.
    """
    found: dict[int, Constant] = {}
    for index, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        tensor = example_inputs[index] if index < len(example_inputs) else None
        if isinstance(tensor, Tensor) and _is_constant(node, tensor):
            found[index] = Constant(_path(node), tensor)
    return found


def _is_constant(node: fx.Node, tensor: Tensor) -> bool:
    if isinstance(tensor, torch.nn.Parameter) or "_dynamo_static_input_type" in (node.meta.get("tensor_dict") or {}):
        return True
    source = getattr(node.meta.get("grapharg"), "source", None)
    while source is not None and hasattr(source, "base"):
        source = source.base
    if source is None:
        return False
    return type(source).__name__ == "GlobalSource" or not getattr(source, "is_input", True)


def _path(node: fx.Node) -> str:
    source = getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    name = name() if callable(name) else str(name)
    return path_of_source(name) or node.name


def path_of_source(name: str) -> str:
    """`L['self']._modules['layers']._modules['0']._buffers['w']` is `layers.0.w` in the user's model."""
    steps = [next(part for part in match.groups() if part is not None) for match in _STEP.finditer(name)]
    steps = [step for step in steps if step not in _CONTAINERS]
    if len(steps) > 1 and name.startswith("L["):
        steps = steps[1:]  # the local variable that holds the model
    return ".".join(steps)


def aot_constants(graph: fx.Graph, gm: fx.GraphModule, outer: Mapping[int, Constant]) -> dict[fx.Node, Constant]:
    """The same constants as inputs of the ATen graph that AOTAutograd made of `gm`; outer: those of gm's inputs, by number."""
    found: dict[fx.Node, Constant] = {}
    for node in graph.find_nodes(op="placeholder"):
        constant = resolve(node.meta.get("desc"), gm, outer)
        if constant is not None:
            found[node] = constant
    return found


def number_of(desc: Any) -> int | None:
    """The number of gm's input that an input of the ATen graph is, or is a part of; None if it is none."""
    kind = type(desc).__name__
    if kind == "SubclassGetAttrAOTInput":
        return number_of(desc.base)
    return desc.idx if kind == "PlainAOTInput" else None


def resolve(desc: Any, gm: fx.GraphModule, outer: Mapping[int, Constant]) -> Constant | None:
    """The constant that AOTAutograd's description of an input stands for, None if it is none."""
    kind = type(desc).__name__
    if kind == "PlainAOTInput":
        return outer.get(desc.idx)
    if kind in ("ParamAOTInput", "BufferAOTInput"):
        tensor = _attribute(gm, desc.target)
        return Constant(desc.target, tensor) if isinstance(tensor, Tensor) else None
    if kind == "SubclassGetAttrAOTInput":
        base = resolve(desc.base, gm, outer)
        inner = getattr(base.tensor, desc.attr, None) if base is not None else None
        return Constant(f"{base.path}.{desc.attr}", inner) if base is not None and isinstance(inner, Tensor) else None
    return None


def _attribute(gm: fx.GraphModule, target: str) -> Any:
    item: Any = gm
    for part in target.split("."):
        item = getattr(item, part, None)
    return item
