"""Graphs that are one operator or one number away from a spelling that qcompile recognizes."""

import operator
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from support.spellings import SPELLINGS
from torch import Tensor, fx

from fuzz.trial import capture

aten = torch.ops.aten
# An operator, and what stands for it in a near miss: mostly others with the same arguments.
INSTEAD: dict[Any, tuple[Any, ...]] = {
    aten.mul.Tensor: (aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.maximum.default, aten.remainder.Tensor),
    aten.sub.Tensor: (aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default),
    aten.add.Tensor: (aten.sub.Tensor, aten.mul.Tensor),
    aten.div.Tensor: (aten.mul.Tensor, aten.floor_divide.default, aten.remainder.Tensor),
    aten.bitwise_and.Scalar: (aten.bitwise_or.Scalar, aten.bitwise_xor.Scalar),
    aten.__rshift__.Scalar: (aten.__lshift__.Scalar,),
    aten.bitwise_right_shift.Tensor: (aten.bitwise_left_shift.Tensor,),
    aten.index.Tensor: (),
    aten.stack.default: (),
}
# What may stand between a constant's operator and its user.
BETWEEN: tuple[Callable[[fx.Graph, fx.Node], fx.Node], ...] = (
    lambda graph, node: graph.call_function(aten.neg.default, (node,)),
    lambda graph, node: graph.call_function(aten.abs.default, (node,)),
    lambda graph, node: graph.call_function(aten.flip.default, (node, [-1])),
    lambda graph, node: graph.call_function(aten.roll.default, (node, [1], [-1])),
    lambda graph, node: graph.call_function(aten.mul.Tensor, (node, 2)),
    lambda graph, node: graph.call_function(aten.add.Tensor, (node, 1)),
    lambda graph, node: graph.call_function(aten.clamp.default, (node, -5, 5)),
    lambda graph, node: graph.call_function(aten.clamp.default, (node, 0)),
    lambda graph, node: graph.call_function(aten.round.default, (node,)),
    lambda graph, node: graph.call_function(aten.remainder.Scalar, (node, 7)),
    lambda graph, node: graph.call_function(aten.floor_divide.Scalar, (node, 2)),
    lambda graph, node: graph.call_function(aten.cumsum.default, (node, -1)),
    lambda graph, node: graph.call_function(aten.relu.default, (node,)),
    lambda graph, node: graph.call_function(aten._to_copy.default, (node,), {"dtype": torch.float16}),
    lambda graph, node: graph.call_function(aten._to_copy.default, (node,), {"dtype": torch.bfloat16}),
    lambda graph, node: graph.call_function(aten._to_copy.default, (node,), {"dtype": torch.int8}),
    lambda graph, node: graph.call_function(aten._to_copy.default, (node,), {"dtype": torch.uint8}),
    lambda graph, node: graph.call_function(aten.clone.default, (node,)),
)

# Not the one that fills an empty tensor: without one of its copies it would hold whatever is there.
STEADY = tuple(spelling for spelling in SPELLINGS if spelling.name != "nibbles by slices")


def near_miss(rng: Random) -> tuple[fx.GraphModule, list[Tensor], list[str], str]:
    """(graph of (x, *constants), its inputs, their names, which spelling it was and what was changed)."""
    while True:
        spelling = rng.choice(STEADY)
        torch.manual_seed(rng.randrange(2**31))
        tensors = spelling.tensors()
        x = spelling.x(rng.randrange(2**31))
        inputs = [x, *tensors.values()]
        gm = capture(_function(spelling.forward, list(tensors)), inputs)
        words = [_mutate(gm, rng) for _ in range(rng.choice((1, 1, 1, 2)))]
        try:
            with torch.no_grad():
                result = gm(*inputs)[0]
                again = capture(gm, inputs)
        except Exception:  # shapes or dtypes that do not fit
            continue
        if isinstance(result, Tensor) and result.dtype.is_floating_point:
            return again, inputs, ["x", *tensors], f"{spelling.name}: {'; '.join(words)}"


def _function(forward: Callable[..., Tensor], names: list[str]) -> Callable[..., tuple[Tensor]]:
    class Given:
        """Stands for the module: its tensors are the function's arguments."""

    def call(x: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        given = Given()
        for name, tensor in zip(names, tensors, strict=True):
            setattr(given, name, tensor)
        return (forward(given, x),)

    return call


def _mutate(gm: fx.GraphModule, rng: Random) -> str:
    """Changes one place of the graph; what in words."""
    nodes = [node for node in gm.graph.nodes if node.op == "call_function" and node.target is not operator.getitem]
    node = rng.choice(nodes)
    way = rng.choice((_other_operator, _other_number, _something_between, _something_between))
    words = way(gm.graph, node, rng)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return words


def _other_operator(graph: fx.Graph, node: fx.Node, rng: Random) -> str:
    able = [item for item in graph.nodes if INSTEAD.get(item.target)]
    node = rng.choice(able) if able else node
    others = INSTEAD.get(node.target, ())
    if not others:
        return _something_between(graph, node, rng)
    before, node.target = node.target, rng.choice(others)
    return f"{node.name} = {before} -> {node.target}"


def _other_number(graph: fx.Graph, node: fx.Node, rng: Random) -> str:
    able = [item for item in graph.nodes if item.op == "call_function" and any(isinstance(arg, int | float) for arg in item.args)]
    if not able:
        return _something_between(graph, node, rng)
    node = rng.choice(able)
    at = rng.choice([place for place, arg in enumerate(node.args) if isinstance(arg, int | float)])
    old = node.args[at]
    assert isinstance(old, int | float)
    new = rng.choice((old + 1, old - 1, old * 2, -old, 0, old * 0.5 if isinstance(old, float) else old // 2))
    node.update_arg(at, new)
    return f"{node.name}: {old} -> {new}"


def _something_between(graph: fx.Graph, node: fx.Node, rng: Random) -> str:
    with graph.inserting_after(node):
        new = rng.choice(BETWEEN)(graph, node)
        last = new
        if isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dtype.is_floating_point:
            with graph.inserting_after(new):
                last = graph.call_function(aten._to_copy.default, (new,), {"dtype": node.meta["val"].dtype})
    node.replace_all_uses_with(last, delete_user_cb=lambda user: user is not new)
    return f"{new.target} after {node.name}"
