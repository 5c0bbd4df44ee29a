"""One function may have more graphs than Dynamo allows by default, and the last one that is allowed is said to be it."""

import warnings
from typing import Any

import pytest
import torch
from support.layer_stacks import OPTIONS, Stack, compiled
from torch import Tensor
from torch._dynamo import config
from torch._dynamo.utils import counters

import qcompile
from qcompile.torch_internals import recompiles

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Counting(Stack):
    """Another graph for every number of keywords."""

    def forward(self, x: Tensor, **keywords: int) -> Tensor:
        return super().forward(x) + len(keywords)


def kinds_of_call(run: Any, count: int) -> list[str]:
    """Call with more and more keywords, each a graph of its own; what warnings said."""
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number in range(count):
            run(torch.randn(2, 32), **{f"a{index}": 1 for index in range(number)})
    return [str(item.message) for item in said if "qcompile" in str(item.message)]


@pytest.mark.parametrize("plain", [True, False])
def test_ten_kinds_of_call_are_ten_graphs(plain: bool) -> None:
    model = Counting(1).eval()
    run = compiled(model) if plain else qcompile.compile(model, **OPTIONS)
    assert not kinds_of_call(run, 10)
    assert counters["stats"]["unique_graphs"] == 10
    assert qcompile.report().notes == ()


def test_last_graph_is_said_once_in_a_warning_and_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompiles, "GRAPHS", 3)
    said = kinds_of_call(compiled(Counting(1).eval()), 6)
    assert counters["stats"]["unique_graphs"] == 3
    assert len(said) == 1
    assert "graph 3 of the at most 3" in said[0]
    (note,) = qcompile.report().notes
    assert "forward" in note
    assert "run eagerly, without qcompile" in str(qcompile.report())
    assert qcompile.report().to_dict()["notes"] == [note]
    torch._dynamo.reset()
    assert qcompile.report().notes == ()


@pytest.mark.parametrize("limit", [2, 9])
def test_limit_of_the_users_own_is_kept(limit: int) -> None:
    with config.patch(recompile_limit=limit):
        said = kinds_of_call(qcompile.compile(Counting(1).eval(), **OPTIONS), limit + 1)
    assert counters["stats"]["unique_graphs"] == limit
    assert len(said) == 1
    torch._dynamo.reset()
    model = Counting(1).eval()
    model.compile(backend="qcompile", options=OPTIONS, recompile_limit=limit)
    kinds_of_call(model, 3)
    assert bool(qcompile.report().notes) == (limit == 2)


def test_limit_over_all_regions_is_said_too() -> None:
    with config.patch(accumulated_recompile_limit=3):
        (said,) = kinds_of_call(compiled(Counting(1).eval()), 5)
    assert "accumulated_recompile_limit" in said


def test_other_back_ends_keep_their_limit() -> None:
    def forward(x: Tensor, **keywords: int) -> Tensor:
        return x + len(keywords)

    kinds_of_call(compiled(Counting(1).eval()), 2)
    before = counters["stats"]["unique_graphs"]
    kinds_of_call(torch.compile(forward, backend="eager"), 12)
    assert counters["stats"]["unique_graphs"] - before == config.recompile_limit == 8
