"""Linears of every spelling that read one input: joined where they are alike, whatever stands between them, and right."""

import random
from typing import Any

import pytest
import torch
from support.spellings import BF16, SPELLINGS, K, M
from torch import Tensor, nn

import qcompile
from qcompile.meaning import sqnr_db

LEAST_DB = 40.0

pytestmark = pytest.mark.usefixtures("fresh_compiler")


# Two and three of every spelling take Dynamo half a minute to trace: two of every fourth are enough beside three of each.
PAIRS = SPELLINGS[::4]


class Together(nn.Module):
    """Two linears of a spelling on one x, their results apart, and three on another one, their results added in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(nn.ModuleList(spelling.model() for _ in range(2)) for spelling in PAIRS)
        self.triples = nn.ModuleList(nn.ModuleList(spelling.model() for _ in range(3)) for spelling in SPELLINGS)

    def forward(self, xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
        results: list[Tensor] = []
        pairs: Any = self.pairs
        triples: Any = self.triples
        for (first, second), x in zip(pairs, xs, strict=True):
            results += [first(x).relu(), second(x.clone().view(x.shape))]
        for (first, second, third), y in zip(triples, ys, strict=True):
            results.append(first(y) + second(y) + third(y))
        return results


def test_two_and_three_of_each_on_one_input() -> None:
    model = Together()
    xs, ys = [spelling.x(0) for spelling in PAIRS], [spelling.x(1) for spelling in SPELLINGS]
    with torch.no_grad():
        want = model(xs, ys)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager"})(xs, ys)
    assert [row.module for row in qcompile.report().sites if row.kernel is None] == []
    assert len(qcompile.report().sites) == 2 * len(PAIRS) + 3 * len(SPELLINGS)
    names = [spelling.name for spelling in PAIRS for _ in range(2)] + [spelling.name for spelling in SPELLINGS]
    assert [name for name, w, g in zip(names, want, got, strict=True) if not sqnr_db(w, g) >= LEAST_DB] == []


def test_all_of_one_shape_on_one_input_in_any_order() -> None:
    like = [spelling for spelling in SPELLINGS if spelling.shape == (M, K) and spelling.dtype is BF16]
    table = [spelling for spelling in like if "N == K" not in spelling.name]
    random.Random(0).shuffle(table)
    models = nn.ModuleList(spelling.model() for spelling in table)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        sums: list[Tensor] = []
        for number, model in enumerate(models):
            y = model(x).float()
            y = y if y.shape[0] == M else y.t()
            sums.append(y + sums[number // 2] if sums else y)
        return tuple(sums)

    x = table[0].x()
    with torch.no_grad():
        want, got = run(x), torch.compile(run, backend="qcompile", options={"rest": "eager"})(x)
    assert len(qcompile.report().served) == len(table)
    assert [spelling.name for spelling, w, g in zip(table, want, got, strict=True) if not sqnr_db(w, g) >= LEAST_DB] == []
