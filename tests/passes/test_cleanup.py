"""cleanup: nothing dead, no raw weight that nobody reads, a fake value on every node."""

import torch
from support.graphs import before_and_after, expect, through, with_state
from support.packed_linears import Block
from support.spellings import BF16, K, N, Written, int8, linear, scale
from torch import Tensor, nn

from qcompile.options import Options
from qcompile.pipeline import State

X = torch.zeros(4, K, dtype=BF16)
REFERENCE = Options(kernels=("reference",))


def test_raw_weights_are_gone() -> None:
    model = Written(lambda m, x: linear(x, m.w * m.s), {"w": int8(), "s": scale(N, 1)})
    expect(before_and_after(model, X, "cleanup", REFERENCE), __file__, "raw weights")


def test_raw_weights_that_something_else_reads_stay() -> None:
    model = Written(lambda m, x: linear(x, m.w * m.s) + x[:, :N] * m.s.T, {"w": int8(), "s": scale(N, 1)})
    state = with_state(model, X, through("cleanup"), REFERENCE)
    names = [str(node.meta.get("constant")) for node in state.graph.find_nodes(op="placeholder")]
    assert "s" in names and "w" not in names


def test_nothing_is_dead() -> None:
    state = with_state(Block(), X, through("cleanup"), REFERENCE)
    assert all(node.users or node.op in {"output", "placeholder"} for node in state.graph.nodes)
    assert all(node.users for node in state.folded)


def test_effects_stay() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.count.add_(1)  # type: ignore[operator,union-attr]
        return linear(x, m.w * m.s)  # type: ignore[operator]

    model = Written(forward, {"w": int8(), "s": scale(N, 1), "count": torch.zeros(1)})
    state: State = with_state(model, X, through("cleanup"), REFERENCE)
    assert any("copy_" in str(node.target) for node in state.graph.nodes)
