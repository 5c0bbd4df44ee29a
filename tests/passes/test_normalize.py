"""normalize: one spelling for products with a constant low-bit weight; everything else keeps its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.graphs import before_and_after, expect
from support.spellings import BF16, SPELLINGS, K, N, Written, int8, linear, scale
from torch import Tensor

CASES = {
    "mv": "vector by mv",
    "weight on the left": "weight on the left",
    "expanded batch": "bmm with expand",
    "weight left of a batch": "weight left of 3-D",
    "einsum": "einsum, output transposed",
    "alpha and beta": "addmm with alpha and beta",
    "plain addmm stays": "addmm",
}


@pytest.mark.parametrize("case", CASES)
def test_one_spelling(case: str) -> None:
    spelling = next(spelling for spelling in SPELLINGS if spelling.name == CASES[case])
    expect(before_and_after(spelling.model(), spelling.x(), "normalize"), __file__, case)


def test_a_symbolic_batch() -> None:
    spelling = next(spelling for spelling in SPELLINGS if spelling.name == "bmm with expand")
    text = before_and_after(spelling.model(), spelling.x(), "normalize", dynamic=True).partition("after normalize:\n")[2]
    assert " = mm(" in text and " = bmm(" not in text


def untouched(forward: Callable[..., Tensor], x: Tensor, **tensors: Any) -> None:
    text = before_and_after(Written(forward, tensors), x, "normalize")
    before, after = text.removeprefix("before normalize:\n").split("after normalize:\n")
    assert before == after


X = torch.zeros(4, K, dtype=BF16)


def test_float_weights_keep_their_spelling() -> None:
    untouched(lambda m, x: m.w @ x.T, X, w=torch.zeros(N, K, dtype=BF16))
    untouched(lambda m, x: torch.mv(m.w, x[0]), X, w=torch.zeros(N, K, dtype=BF16))
    untouched(lambda m, x: torch.addmm(x.sum(), x, m.w, alpha=2), X, w=torch.zeros(K, N, dtype=BF16))


def test_products_of_activations_keep_their_spelling() -> None:
    untouched(lambda m, x: torch.bmm(x[None], x[None].mT), X)


def test_products_of_constants_keep_their_spelling() -> None:
    untouched(lambda m, x: x + (m.w.to(BF16) @ m.v).sum(), X, w=int8(), v=torch.zeros(K, 3, dtype=BF16))


def test_different_matrices_of_a_batch_stay() -> None:
    untouched(lambda m, x: torch.bmm(x, m.w.to(BF16)), torch.zeros(3, 2, K, dtype=BF16), w=torch.zeros(3, K, N, dtype=torch.int8))


def test_views_that_do_nothing_go_unless_they_are_results() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = linear(x.view(4, K).detach(), m.w.to(BF16)) * m.s
        return y.view(4, N), x.alias() if hasattr(x, "alias") else x.view(4, K)

    expect(before_and_after(Written(forward, {"w": int8(), "s": scale(N)}), X, "normalize"), __file__, "views")  # type: ignore[arg-type]
