"""Functions emitted into graphs: traced once for each key and kind of arguments, and copied where they are needed."""

import pytest
import torch
from support.large_graphs import traced
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from qcompile.graph.nodes import value
from qcompile.graph.tracing import Emitter
from qcompile.graph.walk import evaluate


def graph_of(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[fx.Graph, list[fx.Node]]:
    """A graph with these inputs and no code."""
    graph, mode = fx.Graph(), FakeTensorMode()
    nodes = [graph.placeholder(f"x{index}") for index in range(len(shapes))]
    for node, shape in zip(nodes, shapes, strict=True):
        node.meta["val"] = mode.from_tensor(torch.empty(shape, dtype=dtype))
    return graph, nodes


def test_a_function_becomes_nodes_that_compute_it() -> None:
    graph, (x, w) = graph_of((3, 4), (5, 4))
    made = Emitter()(graph, lambda a, b: torch.relu(a @ b.T), [x, w], "product")
    assert value(made).shape == (3, 5)
    given = {x: torch.randn(3, 4), w: torch.randn(5, 4)}
    assert torch.equal(evaluate([made], given)[0], torch.relu(given[x] @ given[w].T))


def test_a_key_is_traced_once_for_each_kind_of_arguments() -> None:
    calls: list[torch.Size] = []

    def function(a: Tensor) -> Tensor:
        calls.append(a.shape)
        return a + 1

    emit = Emitter()
    graph, (first, second, wider) = graph_of((2, 2), (2, 2), (2, 3))
    one, two = emit(graph, function, [first], "key"), emit(graph, function, [second], "key")
    assert one is not two and len(calls) == 1  # a copy, with the arguments it was asked for
    assert evaluate([two], {second: torch.ones(2, 2)})[0].sum() == 8
    emit(graph, function, [wider], "key")
    emit(graph, function, [first], "another key")
    assert len(calls) == 3
    other, (half,) = graph_of((2, 2), dtype=torch.float16)
    emit(other, function, [half], "key")
    assert len(calls) == 4


def test_absent_arguments_stay_absent() -> None:
    emit = Emitter()
    graph, (x, y) = graph_of((2,), (2,))

    def function(a: Tensor, b: Tensor | None, c: Tensor | None) -> Tensor:
        return a if b is None and c is None else a + b if b is not None else a - c  # type: ignore[operator]

    feed = {x: torch.tensor([1.0, 2.0]), y: torch.tensor([10.0, 10.0])}
    for arguments, wanted in (([x, y, None], [11.0, 12.0]), ([x, None, y], [-9.0, -8.0]), ([x, None, None], [1.0, 2.0])):
        made = emit(graph, function, arguments, "key")
        assert evaluate([made], feed)[0].tolist() == wanted


def test_several_results_and_none_keep_their_structure() -> None:
    graph, (x,) = graph_of((4,))
    made = Emitter()(graph, lambda a: (a * 2, None, [a + 1]), [x], "several")
    assert made[1] is None
    assert [item.tolist() for item in evaluate([made[0], made[2][0]], {x: torch.ones(4)})] == [[2.0] * 4, [2.0] * 4]


def test_one_node_twice_is_two_arguments() -> None:
    graph, (x,) = graph_of((3,))
    emit = Emitter()
    assert evaluate([emit(graph, torch.sub, [x, x], "sub")], {x: torch.ones(3)})[0].tolist() == [0.0] * 3
    graph, (x, y) = graph_of((3,), (3,))
    y.meta["val"] = x.meta["val"]  # as with two copies of one traced piece
    made = emit(graph, torch.sub, [x, y], "sub of two")
    assert evaluate([made], {x: torch.ones(3), y: torch.zeros(3)})[0].tolist() == [1.0] * 3


def test_a_tensor_that_the_function_spells_out_comes_along() -> None:
    graph, (x,) = graph_of((3,))
    made = Emitter()(graph, lambda a: a * torch.tensor([1.0, 2.0, 3.0]), [x], "table")
    assert evaluate([made], {x: torch.ones(3)})[0].tolist() == [1.0, 2.0, 3.0]


def test_decompositions_take_operators_apart() -> None:
    silu = torch.ops.aten.silu.default
    graph, (x,) = graph_of((3,))
    Emitter()(graph, torch.nn.functional.silu, [x], "silu")
    assert any(node.target is silu for node in graph.nodes)
    graph, (x,) = graph_of((3,))
    Emitter({silu: lambda a: a * torch.sigmoid(a)})(graph, torch.nn.functional.silu, [x], "silu")
    assert not any(node.target is silu for node in graph.nodes)


def test_a_node_without_a_known_shape_is_an_error() -> None:
    graph = traced(lambda a: a + 1, torch.empty(2, device="meta"))
    node = next(iter(graph.find_nodes(op="placeholder")))
    node.meta.clear()
    with pytest.raises(TypeError, match="has no known shape and dtype"):
        Emitter()(graph, torch.neg, [node], "neg")
