"""recognize: canonical calls in place of products, and a sentence for each product that is left alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.graphs import before_and_after, expect, through, with_state
from support.packed_linears import packed_linear
from support.spellings import BF16, F32, SPELLINGS, K, N, Written, int4, int8, linear, scale
from torch import Tensor

from qcompile.options import Options
from qcompile.pipeline import State

X = torch.zeros(4, K, dtype=BF16)


def recognized(model: Callable[..., Any], x: Any = X, **options: Any) -> State:
    return with_state(model, x, through("recognize"), replace(Options(), **options))


def test_a_prepared_layer() -> None:
    torch.manual_seed(0)
    expect(before_and_after(packed_linear(N, K), X, "recognize"), __file__, "prepared layer")


def test_a_scale_behind_the_product() -> None:
    spelling = SPELLINGS[0]
    expect(before_and_after(spelling.model(), spelling.x(), "recognize"), __file__, "scale behind the product")


def test_a_bias_and_a_cast() -> None:
    model = Written(
        lambda m, x: (linear(x, m.w.to(F32) * m.s) + m.b).to(BF16), {"w": int8(), "s": scale(N, 1, dtype=F32), "b": torch.zeros(N)}
    )
    expect(before_and_after(model, X.float(), "recognize"), __file__, "bias and cast")


READ = {
    "linear then scale, 2-D": "plain_int8",
    "linear of the scaled": "plain_int8",
    "nibbles by shifts of words": "compressed_tensors",
    "GPTQ by hand": "gptq",
    "nibbles by slices": "lattice",
    "group index": "lattice",
}


@pytest.mark.parametrize("name", READ)
def test_who_reads_it(name: str) -> None:
    spelling = next(spelling for spelling in SPELLINGS if spelling.name == name)
    (site,) = recognized(spelling.model(), spelling.x()).sites
    assert site.report.recognized_by == READ[name]


def reason(forward: Callable[..., Any], x: Tensor = X, **tensors: Tensor) -> str:
    state = recognized(Written(forward, tensors), x)
    assert state.sites == []
    (row,) = state.declined
    return row.declined


def test_refused_experts() -> None:
    assert reason(
        lambda m, x: torch.bmm(x, m.w.to(BF16)), torch.zeros(3, 2, K, dtype=BF16), w=torch.zeros(3, K, N, dtype=torch.int8)
    ) == ("the weight is a batch of 3 matrices (experts); only single linears are rewritten")


def test_refused_off_the_lattice() -> None:
    torch.manual_seed(0)
    assert reason(lambda m, x: linear(x, m.w.to(BF16) + m.e), w=int4(), e=torch.randn(N, K).to(BF16)) == (
        "divided by each of its scales the weight does not become integers of 8 bits or fewer"
    )


def test_refused_infinite_weight() -> None:
    assert "NaN or infinity" in reason(lambda m, x: linear(x, m.w * m.s), w=int4(), s=torch.full((N, 1), float("inf"), dtype=BF16))


def test_refused_infinite_factor() -> None:
    assert reason(lambda m, x: linear(x, m.w.to(BF16)) / m.s, w=int4(), s=torch.zeros(N, dtype=BF16)) == (
        "a factor after its product is NaN or infinite"
    )


def test_refused_argument() -> None:
    state = recognized(lambda x, w: linear(x, w.to(BF16)), [X, int8()])
    assert [row.declined for row in state.declined] == ["its weight depends on an input of the model, so it is no constant"]


def test_refused_without_fuel() -> None:
    state = recognized(Written(lambda m, x: linear(x, m.w.to(BF16)), {"w": int8()}), fuel=0)
    assert [row.declined for row in state.declined] == ["the rewrite budget (option fuel) is used up"]


def test_dense_layers_are_noted() -> None:
    state = recognized(Written(lambda m, x: linear(x, m.weight), {"weight": torch.zeros(N, K, dtype=BF16)}))
    assert (state.sites, state.declined, state.dense) == ([], [], ["weight"])


@pytest.mark.parametrize(
    ("forward", "post", "biases"),
    [
        (lambda m, x: linear(x, m.w.to(BF16)) * m.s, 1, 0),
        (lambda m, x: (linear(x, m.w.to(BF16)) * m.s + m.b) / m.s, 2, 1),
        (lambda m, x: linear(x, m.w.to(BF16), m.b) + m.b, 0, 2),
        (lambda m, x: linear(x, m.w.to(BF16)).relu() * m.s, 0, 0),
        (lambda m, x: m.s / linear(x, m.w.to(BF16)), 0, 0),
        (lambda m, x: linear(x, m.w.to(BF16)) * x[:, :1], 0, 0),
        (lambda m, x: linear(x, m.w.to(BF16)).view(2, -1) * m.s.repeat(2), 0, 0),
        (lambda m, x: linear(x, m.w.to(BF16)).view(2, 2, N).permute(2, 0, 1) * m.s[:, None, None], 1, 0),
        (lambda m, x: linear(x, m.w.to(BF16)).view(4, 2, N // 2) * m.s.view(2, N // 2), 0, 0),
    ],
)
def test_what_belongs_to_the_product(forward: Callable[..., Any], post: int, biases: int) -> None:
    from qcompile.graph.nodes import is_call  # noqa: PLC0415
    from qcompile.graph.walk import constant_nodes  # noqa: PLC0415
    from qcompile.recognize.products import PRODUCTS, Product, find_product  # noqa: PLC0415

    found: list[tuple[int, int]] = []

    def work(state: State) -> None:
        through("normalize")(state)
        constant = constant_nodes(state.graph, state.constants)
        for node in state.graph.nodes:
            product = find_product(node, constant) if is_call(node, *PRODUCTS) else None
            if isinstance(product, Product):
                found.append((len(product.post), len(product.biases)))

    with_state(Written(forward, {"w": int8(), "s": scale(N), "b": scale(N)}), X, work)
    assert found == [(post, biases)]
