"""fold: packed weights are inputs with values, equal ones once; without a kernel the dense weight, or nothing."""

import torch
from support.graphs import before_and_after, expect, through, with_state
from support.packed_linears import packed_linear
from support.spellings import BF16, K, N, Written, int8, linear, scale
from torch import nn

from qcompile.options import Options

X = torch.zeros(4, K, dtype=BF16)
OFF = ("native", "zentorch", "torch")


def test_packed_inputs() -> None:
    model = Written(lambda m, x: linear(x, m.w * m.s), {"w": int8(), "s": scale(N, 1)})
    expect(before_and_after(model, X, "fold", Options(kernels=("reference",))), __file__, "packed")


def test_dense_inputs() -> None:
    torch.manual_seed(0)
    expect(before_and_after(packed_linear(N, K), X, "fold", Options(disable=OFF)), __file__, "dense")


def test_left_packed() -> None:
    state = with_state(packed_linear(N, K), X, through("fold"), Options(disable=OFF, fallback="packed"))
    assert state.folded == {}


def test_tied_layers_share() -> None:
    tied = packed_linear(K, K)
    state = with_state(nn.Sequential(tied, nn.ReLU(), tied), X, through("fold"), Options(kernels=("reference",)))
    assert len(state.sites) == 2 and len(state.folded) == 2


def test_what_is_folded_does_not_share_memory_with_the_raw_weight() -> None:
    model = Written(lambda m, x: linear(x, m.w * m.s), {"w": int8(), "s": scale(N, 1, dtype=torch.float32)})
    state = with_state(model, X.float(), through("fold"), Options(kernels=("reference",)))
    mine = {tensor.untyped_storage().data_ptr() for tensor in model.buffers()}
    assert len(state.folded) == 2
    assert all(folded.tensor.untyped_storage().data_ptr() not in mine for folded in state.folded.values())
