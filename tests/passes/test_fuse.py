"""fuse: linears that read one input are one site; whatever makes them different keeps them apart."""

from dataclasses import replace
from typing import Any

import torch
from support.graphs import before_and_after, expect, through, with_state
from support.packed_linears import Block, packed_linear
from support.spellings import BF16, K, Written, int4, int8, linear, scale
from torch import Tensor, nn

from qcompile.options import Options
from qcompile.pipeline import State

X = torch.zeros(4, K, dtype=BF16)


def fused(model: Any, x: Tensor = X) -> list[int]:
    """How many linears each site has after the pass."""
    state = with_state(model, x, through("fuse"))
    return sorted(len(site.parts) or 1 for site in state.sites)


def tensors(**more: Any) -> dict[str, Any]:
    return {"a": int4(), "b": int4(), "s": scale(48, 1), "t": scale(48, 1), **more}


def test_gate_and_up() -> None:
    model = Written(lambda m, x: linear(x, m.a * m.s) * linear(x, m.b * m.t).relu(), tensors())
    expect(before_and_after(model, X, "fuse"), __file__, "gate and up")


def test_three_of_different_height() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = packed_linear(64, K), packed_linear(16, K), packed_linear(16, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) + torch.cat([self.k(x), self.v(x)] * 2, dim=-1)

    assert fused(Attention()) == [3]


def test_other_inputs_stay_apart() -> None:
    assert fused(Written(lambda m, x: linear(x, m.a * m.s) + linear(x + 1, m.b * m.t), tensors())) == [1, 1]


def test_other_bits_stay_apart() -> None:
    assert fused(Written(lambda m, x: linear(x, m.a * m.s) + linear(x, m.b * m.t), tensors(b=int8()))) == [1, 1]


def test_one_with_a_bias_stays_apart() -> None:
    model = Written(lambda m, x: linear(x, m.a * m.s) + linear(x, m.b * m.t, m.c).relu(), tensors(c=scale(48)))
    assert fused(model) == [1, 1]


def test_a_chain_is_not_fused() -> None:
    assert fused(Written(lambda m, x: linear(linear(x, m.a * m.s), m.b * m.t), tensors(a=int4(64), s=scale(64, 1)))) == [1, 1]


def test_views_of_one_input_are_one_input() -> None:
    model = Written(lambda m, x: linear(x.view(2, 2, K), m.a * m.s).view(4, -1) + linear(x, m.b * m.t), tensors())
    assert fused(model) == [2]


def test_unfused_again() -> None:
    def work(state: State) -> None:
        through("fuse")(state)
        (site,) = [site for site in state.sites if site.parts]
        assert [part.report.note for part in site.parts] == ["one call for gate, up"] * 2
        parts = site.apart()
        state.graph.lint()
        assert [part.report.note for part in parts] == ["", ""]
        assert all(not cut.users for cut in site.cuts)

    with_state(Block(), X, work, replace(Options(), kernels=("reference",)))
