"""Finds out which inputs of a captured graph are constants, and what they are called in the user's model."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from qcompile.graph.nodes import Constant
from qcompile.torch_internals import inputs
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
        if isinstance(tensor, Tensor) and inputs.is_constant(node, tensor):
            nodes[node] = (index, tensor)
    names = Names()
    places = names.of(nodes)
    names.rename_modules(gm.graph)
    return {index: Constant(places[node].path, tensor, places[node].module) for node, (index, tensor) in nodes.items()}


def aot_constants(graph: fx.Graph, gm: fx.GraphModule, outer: Mapping[int, Constant]) -> dict[fx.Node, Constant]:
    """The same constants as inputs of the ATen graph that AOTAutograd made of `gm`; outer: those of gm's inputs, by number.

    Every input gets its name in the model, for the graph's text.
    """
    found: dict[fx.Node, Constant] = {}
    given = list(gm.graph.find_nodes(op="placeholder"))
    for node in graph.find_nodes(op="placeholder"):
        desc = inputs.description(node)
        constant = resolve(desc, gm, outer)
        if constant is not None:
            found[node] = constant
            node.meta["input"] = constant.path
        elif isinstance(desc, inputs.PlainInput) and desc.idx < len(given):  # otherwise it was made on the way
            node.meta["input"] = _LOCAL.sub(r"\1", str(given[desc.idx].target))
    return found


def number_of(desc: Any) -> int | None:
    """The number of gm's input that an input of the ATen graph is, or is a part of; None if it is none."""
    if isinstance(desc, inputs.PartInput):
        return number_of(desc.base)
    return desc.idx if isinstance(desc, inputs.PlainInput) else None


def resolve(desc: Any, gm: fx.GraphModule, outer: Mapping[int, Constant]) -> Constant | None:
    """The constant that AOTAutograd's description of an input stands for, None if it is none."""
    if isinstance(desc, inputs.PlainInput):
        return outer.get(desc.idx)
    if isinstance(desc, inputs.ParameterInput | inputs.BufferInput):
        tensor = _attribute(gm, desc.target)
        return Constant(desc.target, tensor, desc.target.rpartition(".")[0]) if isinstance(tensor, Tensor) else None
    if isinstance(desc, inputs.PartInput):
        base = resolve(desc.base, gm, outer)
        inner = None if base is None else getattr(base.tensor, desc.attr, None)
        return Constant(f"{base.path}.{desc.attr}", inner, base.layer) if base is not None and isinstance(inner, Tensor) else None
    return None


def _attribute(gm: fx.GraphModule, target: str) -> Any:
    item: Any = gm
    for part in target.split("."):
        item = getattr(item, part, None)
    return item
