"""Counts of what happened: each is what its meaning says, and an ordinary call counts nothing."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.packed_linears import Stack

from qcompile import debug

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def since(before: dict[str, int]) -> dict[str, int]:
    """What was counted meanwhile, without zeros."""
    return {name: number - before[name] for name, number in debug.counters().items() if number != before[name]}


def compiled(model: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {"rest": "eager", "kernels": ["reference"], **options}
    return torch.compile(model, backend="qcompile", options=settings)


def test_every_count_has_a_meaning() -> None:
    assert set(debug.counters()) == set(debug.MEANINGS)


def test_a_copy_is_given() -> None:
    debug.counters().clear()
    assert debug.counters()


def test_the_life_of_a_model(tmp_path: Path) -> None:
    model = Stack(1).eval()
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        before = debug.counters()
        run = compiled(model)
        run(x)
        first = since(before)
        assert first["graphs"] == first["compiled"] == 1 and first["evaluated"] >= 3
        before = debug.counters()
        run(x)
        assert since(before) == {}
        compiled(lambda y: model(y) + 1)(x)  # the same weights in another graph
        again = since(before)
        assert again["graphs"] == 1 and again.get("evaluated", 0) == 0 and again["shared"] >= 3
        before = debug.counters()
        model.layers[0].gate.weight_scale.mul_(2)  # type: ignore[union-attr, operator]
        run(x)
        assert since(before)["packed_again"] == 1 and since(before)["evaluated"] == 1
        before = debug.counters()
        model.layers[0].gate.weight_scale.fill_(torch.inf)  # type: ignore[union-attr, operator]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(x)
        assert since(before)["unpacked"] == 1


def test_layers_that_repeat_are_adopted() -> None:
    model = Stack(14).eval()
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    before = debug.counters()
    with torch.no_grad():
        compiled(model, rest="inductor")(x)
    counted = since(before)
    assert counted["graphs"] == 1 and counted["adopted"] >= 10 and counted["compiled"] < 14
