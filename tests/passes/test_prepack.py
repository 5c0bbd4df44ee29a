"""prepack: kernel calls, and their packing on constants; a packing that fails costs its site its kernel."""

import torch
from support.graphs import before_and_after, expect, through, with_state
from support.packed_linears import packed_linear
from support.spellings import BF16, K, N, Written, int8, linear, scale

from qcompile.kernel import KernelCall
from qcompile.options import Options
from qcompile.pipeline import State

X = torch.zeros(4, K, dtype=BF16)


def test_packing_stands_in_the_graph() -> None:
    torch.manual_seed(0)
    model = Written(lambda m, x: linear(x, m.w * m.s), {"w": int8(), "s": scale(N, 1)})
    expect(before_and_after(model, X, "prepack", Options(kernels=("reference",))), __file__, "int8")


def test_calls_name_their_kernel() -> None:
    state = with_state(packed_linear(N, K), X, through("prepack"), Options(kernels=("reference",)))
    (site,) = state.sites
    assert isinstance(site.node.target, KernelCall) and site.node.target.kernel is site.kernel


def test_refused_sites_are_left_alone() -> None:
    def work(state: State) -> None:
        through("prepack")(state)
        (site,) = state.sites
        assert site.kernel is None and "quantized_linear" in str(site.node.target)

    with_state(packed_linear(N, K), X, work, Options(disable=("native", "zentorch", "torch")))
