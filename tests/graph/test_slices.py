"""Parts of a graph's result, computed from parts of its inputs, equal the same parts of the whole."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from support.graphs import through, with_state
from support.spellings import SPELLINGS, Spelling
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from qcompile.graph.nodes import value
from qcompile.graph.slices import Root, Slices, pieces, spread
from qcompile.graph.walk import constant_nodes, evaluate
from qcompile.pipeline import State
from qcompile.recognize.products import PRODUCTS, Product, find_product


def weights(state: State) -> list[Product]:
    constant = constant_nodes(state.graph, state.constants)
    found = [find_product(node, constant) for node in state.graph.nodes if node.target in PRODUCTS]
    return [product for product in found if isinstance(product, Product)]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)
def test_every_spelling(spelling: Spelling) -> None:
    """For every spelling, rows of the weight and rows and outputs of the product alone are what they are in the whole."""

    def work(state: State) -> None:
        through("normalize")(state)
        products = weights(state)
        assert products
        for product in products:
            feed = {node: constant.tensor for node, constant in state.constants.items()}
            rows_of_the_weight(product, feed)
            rows_and_outputs(product, feed)

    with_state(spelling.model(), spelling.x(), work)


def follows(slices: Slices, label: str) -> bool:
    """Whether nothing large (a tenth of the largest node that the label runs along, or more) is computed as a whole."""
    sizes = {node: value(node).numel() for node in slices._axes if isinstance(value(node), Tensor)}
    sliced = [sizes[node] for node in sizes if label in slices._axes[node]]
    whole = [sizes[node] for node in sizes if label not in slices._axes[node] and node not in slices.feed]
    return bool(sliced) and max(whole, default=0) * 10 <= max(sliced)


def rows_of_the_weight(product: Product, feed: dict[fx.Node, Tensor]) -> None:
    """Pieces put together are the dense weight, and none was computed as a whole."""
    axis = 1 if product.transposed else 0
    slices = Slices([Root(product.weight, {"n": axis})], {"n": product.n}, feed)
    assert follows(slices, "n")
    parts = [slices.evaluate({"n": span})[0] for span in pieces(product.n, 16, slices.align("n"))]
    assert len(parts) == math.ceil(product.n / math.lcm(16, slices.align("n")))
    assert torch.equal(torch.cat(parts, axis), evaluate([product.weight], feed)[0])


def rows_and_outputs(product: Product, feed: dict[fx.Node, Tensor]) -> None:
    """Two labels at once: some rows of x and some outputs."""
    end, x = product.end, product.x
    given = torch.randn([int(size) for size in value(x).shape], dtype=torch.float64).to(value(x).dtype)
    shape = list(value(end).shape)
    dims = [dim for dim, size in enumerate(shape) if size == product.n and size != value(product.node).shape[0]]
    if len(dims) != 1 or dims[0] == 0:
        return
    slices = Slices([Root(end, {"n": dims[0], "m": 0})], {"n": product.n, "m": shape[0]}, {**feed, x: given})
    whole = evaluate([end], {**feed, x: given})[0]
    for rows in (range(shape[0]), *spread(shape[0], 1, 2, slices.align("m"))):
        for span in spread(product.n, 8, 2, slices.align("n")):
            part = slices.evaluate({"n": span, "m": rows})[0]
            expected = whole.narrow(0, rows.start, len(rows)).narrow(dims[0], span.start, len(span))
            torch.testing.assert_close(part, expected)


def graph_of(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[fx.Graph, list[fx.Node]]:
    graph = make_fx(function)(*inputs).graph
    for node, given in zip(graph.find_nodes(op="placeholder"), inputs, strict=True):
        node.meta["val"] = given
    return graph, list(graph.find_nodes(op="placeholder"))


OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int]] = {
    "view that merges": (lambda a: a.view(12, 8), (6, 2, 8), 0),
    "view that splits": (lambda a: a.view(6, 2, 8), (12, 8), 0),
    "view with a size of one": (lambda a: a.view(1, 12, 8), (12, 8), 1),
    "bytes as words": (lambda a: a.to(torch.int32).view(torch.uint8), (12, 8), 1),
    "squeeze beside a row": (lambda a: a.unsqueeze(1).squeeze(), (12, 8), 0),
    "reduction": (lambda a: a.amax(-1), (12, 8), 0),
    "reduction in front": (lambda a: a.sum(0), (12, 8), 0),
    "reduction of everything": (lambda a: a / a.abs().max(), (12, 8), 0),
    "softmax along it": (lambda a: a.softmax(0), (12, 8), 0),
    "sorted along it": (lambda a: a.sort(0)[0], (12, 8), 0),
    "flipped along it": (lambda a: a.flip(0), (12, 8), 0),
    "rolled along it": (lambda a: a.roll(1, 0), (12, 8), 0),
    "cat along it": (lambda a: torch.cat([a, a * 2]), (12, 8), 0),
    "one part of several": (lambda a: torch.cat([a, a * 2, a * 3])[12:24] + 1, (12, 8), 0),
    "some of one part": (lambda a: torch.cat([a, a * 2])[14:20].neg(), (12, 8), 0),
    "some of two parts": (lambda a: torch.cat([a, a * 2])[8:20].neg(), (12, 8), 0),
    "one part twice": (lambda a: torch.cat([a, a])[12:20].neg(), (12, 8), 0),
    "from the end": (lambda a: a[-5:].neg(), (12, 8), 0),
    "unpacked, then some": (lambda a: torch.stack([a, a + 1], 1).reshape(24, 8)[8:16].neg(), (12, 8), 0),
    "unpacked, then odd ones": (lambda a: torch.stack([a, a + 1], 1).reshape(24, 8)[7:16].neg(), (12, 8), 0),
    "slice along it": (lambda a: a[3:9] + 1, (12, 8), 0),
    "every second": (lambda a: a[::2] + 1, (12, 8), 0),
    "index along it": (lambda a: a[torch.arange(11, -1, -1)], (12, 8), 0),
    "its own transpose": (lambda a: a + a.t(), (12, 12), 0),
    "repeated": (lambda a: a.repeat_interleave(4, 0), (12, 8), 0),
    "tiled": (lambda a: a.repeat(4, 1), (12, 8), 0),
    "padded along it": (lambda a: torch.nn.functional.pad(a, (0, 0, 2, 2)), (12, 8), 0),
    "padded across": (lambda a: torch.nn.functional.pad(a, (2, 2)), (12, 8), 0),
    "written into": (lambda a: torch.slice_scatter(torch.zeros(12, 16), a, 1, 4, 12), (12, 8), 0),
    "unbound": (lambda a: torch.stack(a.view(12, 2, 4).unbind(1)), (12, 8), 1),
    "a table": (lambda a: torch.tensor([0.0, 1.0, 4.0])[(a > 0).long()], (12, 8), 0),
    "batches": (lambda a: torch.bmm(a, a.transpose(1, 2)), (6, 4, 8), 0),
    "triangle": (torch.tril, (12, 12), 0),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    """Each range alone is the whole's, whether the operator's rule is known or the node is computed as a whole."""
    function, shape, dim = OPERATORS[name]
    a = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    graph, inputs = graph_of(function, a)
    out = next(iter(graph.find_nodes(op="output"))).args[0]
    whole = evaluate([out], {inputs[0]: a})[0]
    size = whole.shape[dim]
    slices = Slices([Root(out, {"n": dim})], {"n": size}, {inputs[0]: a})
    for each in (1, 5, size):
        for span in pieces(size, each, slices.align("n")):
            torch.testing.assert_close(slices.evaluate({"n": span})[0], whole.narrow(dim, span.start, len(span)))


def test_an_input_is_made_for_the_shape_that_is_asked_for() -> None:
    graph, (x, w) = graph_of(lambda x, w: (x * 2) @ w, torch.randn(1000, 8), torch.randn(8, 4))
    out = next(iter(graph.find_nodes(op="output"))).args[0]
    asked: list[list[int]] = []

    def source(shape: Sequence[int]) -> Tensor:
        asked.append(list(shape))
        return torch.ones(shape)

    slices = Slices([Root(out, {"m": 0})], {"m": 1000}, {x: source, w: torch.ones(8, 4)})
    assert torch.equal(slices.evaluate({"m": range(3)})[0], torch.full((3, 4), 16.0))
    assert asked == [[3, 8]]


def test_an_input_that_is_read_whole_and_in_part_is_made_once() -> None:
    """Two roots that compute the same must see the same values, also where one needs all rows and the other some."""
    graph, (x,) = graph_of(lambda x: torch.stack([x.flip(0).flip(0), x]), torch.randn(50, 8))
    whole, part = next(iter(graph.find_nodes(op="output"))).args[0].args[0]
    seeds = iter(range(100))

    def source(shape: Sequence[int]) -> Tensor:
        return torch.randn(list(shape), generator=torch.Generator().manual_seed(next(seeds)))

    slices = Slices([Root(whole, {"m": 0}), Root(part, {"m": 0})], {"m": 50}, {x: source})
    for span in (range(3), range(7, 9)):
        first, second = slices.evaluate({"m": span})
        assert first.shape == (len(span), 8)
        assert torch.equal(first, second)


def test_spread() -> None:
    assert spread(100, 10, 3) == [range(10), range(40, 50), range(90, 100)]
    assert spread(100, 50, 3) == pieces(100, 50) == [range(50), range(50, 100)]
    assert spread(100, 10, 1) == [range(10)]
    assert pieces(20, 7, 4) == [range(0, 4), range(4, 8), range(8, 12), range(12, 16), range(16, 20)]
