"""lower: kernel calls are operators; a site without a kernel is back as it was."""

import torch
from support.graphs import before_and_after, expect
from support.packed_linears import packed_linear
from support.spellings import BF16, SPELLINGS, K, N, Written, int8, linear, scale

from qcompile.options import Options

X = torch.zeros(4, K, dtype=BF16)


def test_operators() -> None:
    model = Written(lambda m, x: linear(x, m.w * m.s), {"w": int8(), "s": scale(N, 1)})
    expect(before_and_after(model, X, "lower", Options(kernels=("reference",))), __file__, "operators")


def test_back_as_it_was() -> None:
    torch.manual_seed(0)
    options = Options(disable=("native", "zentorch", "torch"), fallback="packed")
    expect(before_and_after(packed_linear(N, K), X, "lower", options), __file__, "back as it was")


def test_a_scale_behind_the_product_is_back_too() -> None:
    options = Options(disable=("native", "zentorch", "torch"), fallback="packed")
    spelling = SPELLINGS[0]
    text = before_and_after(spelling.model(), spelling.x(), "lower", options).partition("after lower:\n")[2]
    assert " = mm(" in text and "quantized_linear" not in text and text.rstrip().endswith("return (mul,)")
