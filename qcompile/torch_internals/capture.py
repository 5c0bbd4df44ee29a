"""Finds out which inputs of a captured graph are constants, and what they are called in the user's model."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.graph.nodes import Constant
from qcompile.torch_internals.names import Names

_LOCAL = re.compile(r"^[lL]_(\w+?)_+$")  # how Dynamo calls what a local variable holds


def dynamo_constants(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> dict[int, Constant]:
    """Constant inputs of the graph that Dynamo hands to a back end, by position.

    Constant is what hangs on a module (parameters, buffers, tensor attributes) and what the code reads from its globals or closure;
    arguments of the compiled function and what they contain are not.
    """
    nodes: dict[fx.Node, tuple[int, Tensor]] = {}
    for index, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        tensor = example_inputs[index] if index < len(example_inputs) else None
        if isinstance(tensor, Tensor) and _is_constant(node, tensor):
            nodes[node] = (index, tensor)
    names = Names()
    places = names.of(nodes)
    names.rename_modules(gm.graph)
    return {index: Constant(places[node].path, tensor, places[node].module) for node, (index, tensor) in nodes.items()}


def _is_constant(node: fx.Node, tensor: Tensor) -> bool:
    if isinstance(tensor, torch.nn.Parameter) or "_dynamo_static_input_type" in (node.meta.get("tensor_dict") or {}):
        return True
    source = getattr(node.meta.get("grapharg"), "source", None)
    while source is not None and hasattr(source, "base"):
        source = source.base
    if source is None:
        return False
    return type(source).__name__ == "GlobalSource" or not getattr(source, "is_input", True)


def aot_constants(graph: fx.Graph, gm: fx.GraphModule, outer: Mapping[int, Constant]) -> dict[fx.Node, Constant]:
    """The same constants as inputs of the ATen graph that AOTAutograd made of `gm`; outer: those of gm's inputs, by number.

    Every input gets its name in the model, for the graph's text.
    """
    found: dict[fx.Node, Constant] = {}
    given = list(gm.graph.find_nodes(op="placeholder"))
    for node in graph.find_nodes(op="placeholder"):
        desc = node.meta.get("desc")
        constant = resolve(desc, gm, outer)
        if constant is not None:
            found[node] = constant
            node.meta["input"] = constant.path
        elif type(desc).__name__ == "PlainAOTInput":
            node.meta["input"] = _LOCAL.sub(r"\1", str(given[desc.idx].target))
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
        return Constant(desc.target, tensor, desc.target.rpartition(".")[0]) if isinstance(tensor, Tensor) else None
    if kind == "SubclassGetAttrAOTInput":
        base = resolve(desc.base, gm, outer)
        inner = None if base is None else getattr(base.tensor, desc.attr, None)
        return Constant(f"{base.path}.{desc.attr}", inner, base.layer) if base is not None and isinstance(inner, Tensor) else None
    return None


def _attribute(gm: fx.GraphModule, target: str) -> Any:
    item: Any = gm
    for part in target.split("."):
        item = getattr(item, part, None)
    return item
