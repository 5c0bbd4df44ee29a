"""Names of one layer become those of another."""

import pytest
import torch

from qcompile.graph.nodes import Constant
from qcompile.run.regions.renaming import Renaming


def renaming(*pairs: tuple[str, str]) -> Renaming:
    return Renaming.of((Constant(left, torch.empty(0)), Constant(right, torch.empty(0))) for left, right in pairs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.layers.0.mlp.up_proj", "model.layers.7.mlp.up_proj"),
        ("model.layers.0", "model.layers.7"),
        ("model.layers.0.mlp: native.int4: refused", "model.layers.7.mlp: native.int4: refused"),
        ("model.layers.01.mlp", "model.layers.01.mlp"),
        ("lm_head", "lm_head"),
    ],
)
def test_the_step_that_differs_is_replaced(text: str, expected: str) -> None:
    names = renaming(("model.layers.0.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight"))
    assert names(text) == expected


def test_a_region_may_lie_in_two_layers() -> None:
    names = renaming(("l.0.down.w", "l.4.down.w"), ("l.1.q.w", "l.5.q.w"), ("norm.w", "norm.w"))
    assert [names(text) for text in ("l.0.down", "l.1.q", "norm")] == ["l.4.down", "l.5.q", "norm"]
