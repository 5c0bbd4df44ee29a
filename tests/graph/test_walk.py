"""Ways through graphs that are written down here node by node: what comes before what, what is constant, and the values."""

import pytest
import torch
from torch import fx

from qcompile.errors import ReleasedWeightError
from qcompile.graph.nodes import Constant
from qcompile.graph.walk import constant_nodes, evaluate, followers, leaves_of, live_nodes, run_node, subgraph, through_views

aten = torch.ops.aten


class Diamond:
    """y = (x @ w) + x * s, with w = a.view(2, 2) and s = w * a; `dead` is read by nobody."""

    def __init__(self) -> None:
        self.graph = graph = fx.Graph()
        self.x, self.a = graph.placeholder("x"), graph.placeholder("a")
        self.w = graph.call_function(aten.view.default, (self.a, [2, 2]))
        self.s = graph.call_function(aten.mul.Tensor, (self.w, self.w))
        self.mm = graph.call_function(aten.mm.default, (self.x, self.w))
        self.scaled = graph.call_function(aten.mul.Tensor, (self.x, self.s))
        self.y = graph.call_function(aten.add.Tensor, (self.mm, self.scaled))
        self.dead = graph.call_function(aten.neg.default, (self.x,))
        graph.output((self.y,))
        self.tensor = torch.arange(4.0)
        self.constants = {self.a: Constant("layer.a", self.tensor)}


def test_constants_are_what_follows_from_constants_alone() -> None:
    d = Diamond()
    assert constant_nodes(d.graph, d.constants) == {d.a, d.w, d.s}
    assert constant_nodes(d.graph, {}) == set()


def test_what_changes_or_draws_is_no_constant() -> None:
    graph = fx.Graph()
    a = graph.placeholder("a")
    drawn = graph.call_function(aten.rand_like.default, (a,))
    written = graph.call_function(aten.add_.Tensor, (a, 1))
    behind = graph.call_function(aten.neg.default, (drawn,))
    known = constant_nodes(graph, {a: Constant("a", torch.ones(1))})
    assert known == {a} and not {drawn, written, behind} & known


def test_a_subgraph_holds_each_node_once_after_its_arguments() -> None:
    d = Diamond()
    order = subgraph([d.y], set())
    assert set(order) == {d.x, d.a, d.w, d.s, d.mm, d.scaled, d.y} and len(order) == 7
    for node in order:
        assert all(order.index(parent) < order.index(node) for parent in node.all_input_nodes)


def test_a_subgraph_ends_before_its_stops() -> None:
    d = Diamond()
    assert subgraph([d.y], {d.w, d.x}) == [d.mm, d.s, d.scaled, d.y]
    assert subgraph([d.w], {d.w}) == []
    assert subgraph([], set()) == []
    assert subgraph([d.y], set(), lambda node: node is d.s or node is d.mm) == [d.x, d.scaled, d.y]


def test_a_chain_of_any_length_is_walked() -> None:
    graph = fx.Graph()
    node = first = graph.placeholder("x")
    for _ in range(5000):  # more than Python's stack
        node = graph.call_function(aten.neg.default, (node,))
    assert len(subgraph([node], set())) == 5001
    assert torch.equal(evaluate([node], {first: torch.ones(1)})[0], torch.ones(1))


def test_leaves_come_in_the_order_of_the_arguments() -> None:
    graph = fx.Graph()
    a, b, c = (graph.placeholder(name) for name in "abc")
    inner = graph.call_function(aten.sub.Tensor, (c, a))
    root = graph.call_function(aten.mul.Tensor, (inner, b))
    constants = {node: Constant(node.name, torch.ones(1)) for node in (a, b, c)}
    assert leaves_of(root, constants) == [c, a, b]
    assert leaves_of(b, constants) == [b]
    assert leaves_of(root, {a: constants[a]}) == [a]
    assert leaves_of(root, {}) == []


def test_followers_are_all_that_is_computed_from_a_node() -> None:
    d = Diamond()
    assert followers(d.s) == {d.s, d.scaled, d.y, d.graph.output_node()}
    assert followers(d.dead) == {d.dead}


def test_live_nodes_are_those_that_an_output_needs() -> None:
    d = Diamond()
    assert d.dead not in live_nodes(d.graph)
    assert {d.x, d.a, d.w, d.s, d.mm, d.scaled, d.y, d.graph.output_node()} <= live_nodes(d.graph)


def test_what_has_an_effect_lives() -> None:
    graph = fx.Graph()
    a = graph.placeholder("a")
    value = graph.call_function(aten.neg.default, (a,))
    graph.call_function(aten.copy_.default, (a, value))
    graph.output(())
    assert value in live_nodes(graph)


def test_evaluate_gives_each_root_its_value() -> None:
    d = Diamond()
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    w = d.tensor.view(2, 2)
    got = evaluate([d.y, d.w, d.y, d.x], {d.x: x, d.a: d.tensor})
    assert torch.equal(got[0], x @ w + x * w * w) and torch.equal(got[2], got[0])
    assert torch.equal(got[1], w) and got[3] is x


def test_evaluate_starts_where_it_is_fed() -> None:
    d = Diamond()
    assert torch.equal(evaluate([d.s], {d.w: torch.full((2, 2), 3.0)})[0], torch.full((2, 2), 9.0))  # a needs no value


def test_a_released_weight_is_an_error_and_no_crash() -> None:
    d = Diamond()
    released = torch.ones(4)
    released.untyped_storage().resize_(0)
    d.a.meta["constant"] = "layer.a"
    with pytest.raises(ReleasedWeightError, match=r"layer\.a"):
        evaluate([d.w], {d.a: released})


def test_methods_and_spelled_out_tensors_are_run() -> None:
    owner = torch.nn.Module()
    owner.register_buffer("table", torch.tensor([5.0, 6.0]))
    graph = fx.Graph(owning_module=owner)  # type: ignore[arg-type]
    x = graph.placeholder("x")
    table = graph.get_attr("table")
    product = graph.call_method("mul", (x, table))
    assert torch.equal(evaluate([product], {x: torch.tensor([2.0, 3.0])})[0], torch.tensor([10.0, 18.0]))
    with pytest.raises(ValueError, match="cannot evaluate placeholder node x"):
        run_node(x, {}.get)


def test_through_views() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    view = graph.call_function(aten.unsqueeze.default, (graph.call_function(aten.view.default, (x, [4])), 0))
    turned = graph.call_function(aten.permute.default, (x, [1, 0]))
    assert through_views(view) is x and through_views(x) is x
    assert through_views(turned) is turned  # other places, so no view in this sense
