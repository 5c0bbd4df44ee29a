"""What Dynamo and AOTAutograd note about the inputs of a graph, and about the code that a node comes from."""

from typing import Any

import torch
from torch import Tensor, fx

from qcompile.torch_internals.private import private

_USE = "the constants of a graph cannot be found"
_AOT = "torch._functorch._aot_autograd.descriptors."
_GlobalSource = private("torch._dynamo.source.GlobalSource", _USE)
_GraphArg = private("torch._dynamo.variables.builder.GraphArg", _USE, takes=["source"])
PlainInput = private(_AOT + "PlainAOTInput", _USE)
ParameterInput = private(_AOT + "ParamAOTInput", _USE)
BufferInput = private(_AOT + "BufferAOTInput", _USE)
PartInput = private(_AOT + "SubclassGetAttrAOTInput", _USE)


def source_of(node: fx.Node) -> Any:
    """What Dynamo knows of the way to the value of a graph's input, None if nothing."""
    return getattr(node.meta.get("grapharg"), "source", None)


def is_static(node: fx.Node) -> Any:
    """What Dynamo notes for an input whose address stays the same."""
    return (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type")


def is_constant(node: fx.Node, tensor: Tensor) -> bool:
    """Whether an input of the graph that Dynamo captured hangs on a module or is read from globals or a closure."""
    if isinstance(tensor, torch.nn.Parameter) or is_static(node) is not None:
        return True
    source = source_of(node)
    while source is not None and hasattr(source, "base"):
        source = source.base
    return source is not None and (isinstance(source, _GlobalSource) or not getattr(source, "is_input", True))


def description(node: fx.Node) -> Any:
    """What AOTAutograd says an input of its graph is."""
    return node.meta.get("desc")


def example(node: fx.Node) -> Any:
    """The fake value that Dynamo (or, in an ATen graph, AOTAutograd) noted for a node."""
    return node.meta.get("example_value", node.meta.get("val"))


def module_path(node: fx.Node) -> str:
    """The module that the node was traced in, as a path in the user's model; the node's name if that is not known."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]).removeprefix("L['self'].") if stack else node.name


def rename_modules(graph: fx.Graph, renamed: Any) -> None:
    """Give every node the modules it was traced in as `renamed(key, entry)` says them."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {key: renamed(key, entry) for key, entry in stack.items()}
