"""Part of a graph at smaller sizes: equal to the same code traced there, and refused where it depends on its sizes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.large_graphs import traced
from torch import Tensor

from qcompile.graph.nodes import is_call
from qcompile.graph.small_sizes import Layout, Placed, SizesError, fixed, run_small, shrunk, small_size

# Every axis that could be taken for another is as long as it: 4 K/V heads of 4 query heads each, 16 of width, queries and keys.
BATCH, GROUP, WIDTH = 4, 4, 16
B, H, Q, K = (shrunk(name, full, most) for name, full, most in (("b", BATCH, 2), ("h", 4, 3), ("q", 16, 3), ("k", 16, 5)))
HEADS = (*H, *fixed(GROUP))
D = fixed(WIDTH)
INPUTS: tuple[Layout, ...] = ((B, HEADS, Q, D), (B, H, K, D), (B, H, K, D))
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def sizes(layout: Layout) -> list[int]:
    return [small_size(dim) for dim in layout]


def repeated(x: Tensor) -> Tensor:
    batch, heads, rows, width = x.shape
    return x[:, :, None].expand(batch, heads, GROUP, rows, width).reshape(batch, heads * GROUP, rows, width)


def torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, repeated(k), repeated(v))


def in_groups(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def spelled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax((q @ repeated(k).transpose(2, 3)).float() / 4, -1)
    return (weights.to(q.dtype) @ repeated(v)).transpose(1, 2).contiguous()


def safe(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ repeated(k).transpose(2, 3)
    hidden = (scores == -torch.inf).all(-1, keepdim=True)
    exact = torch.exp(scores - scores.amax(-1, keepdim=True))
    weights = torch.where(hidden, torch.zeros_like(scores), exact / exact.sum(-1, keepdim=True))
    return weights.masked_fill(hidden, 0.0) @ repeated(v)


@pytest.mark.parametrize("inductor", [False, True])
@pytest.mark.parametrize("function", [torch_attention, in_groups, spelled, safe])
def test_it_is_what_the_code_computes_there(function: Attention, inductor: bool) -> None:
    full = [torch.empty(4, heads, 16, WIDTH, device="meta") for heads in (16, 4, 4)]
    graph = traced(function, *full, inductor=inductor)
    small = [torch.randn(sizes(layout)) for layout in INPUTS]
    feed = dict(zip(graph.find_nodes(op="placeholder"), map(Placed, small, INPUTS), strict=True))
    got = run_small(graph.output_node().args[0], feed)  # type: ignore[arg-type]
    wanted = function(*small)
    assert list(got.tensor.shape) == sizes(got.layout) == list(wanted.shape)
    assert torch.allclose(got.tensor, wanted, atol=1e-6)


def cut(x: Tensor) -> Tensor:
    return x.view(8, 32, 2)


def half(x: Tensor) -> Tensor:
    return x[:8]


def counted(x: Tensor) -> Tensor:
    return x + torch.arange(16)[:, None]


def turned_back(x: Tensor) -> Tensor:
    return x + x.transpose(0, 1)


def in_turn(x: Tensor) -> Tensor:
    return torch.cumsum(x, 0)


def another_fill(x: Tensor) -> Tensor:
    return torch.ones(16, 16)


@pytest.mark.parametrize("function", [cut, half, counted, turned_back, in_turn, another_fill])
def test_what_depends_on_the_sizes_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    shape = (16, 32) if function is cut else (16, 16)
    graph = traced(function, torch.empty(shape, device="meta"))
    layout = (Q, fixed(shape[1])) if function is cut else (Q, K)
    feed = dict(zip(graph.find_nodes(op="placeholder"), [Placed(torch.randn(sizes(layout)), layout)], strict=True))
    with pytest.raises(SizesError):
        run_small(graph.output_node().args[0], feed)  # type: ignore[arg-type]


def test_a_repetition_in_another_order_is_refused() -> None:
    def tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.repeat(1, GROUP, 1, 1).transpose(2, 3)) @ v.repeat(1, GROUP, 1, 1)

    graph = traced(tiled, *(torch.empty(4, heads, 16, WIDTH, device="meta") for heads in (16, 4, 4)))
    small = [Placed(torch.randn(sizes(layout)), layout) for layout in INPUTS]
    with pytest.raises(SizesError):
        run_small(next(n for n in reversed(graph.nodes) if is_call(n, torch.ops.aten.bmm.default)), dict(zip(graph.nodes, small)))  # noqa: B905
