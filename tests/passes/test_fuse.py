"""fuse: linears of one kind on one input become one call, cut apart."""

import torch
from expecttest import assert_expected_inline
from support.pass_texts import state_after
from support.modules import Int8, Pair
from torch import Tensor

X = torch.randn(3, 32)


def test_two_linears_on_one_input() -> None:
    state, _, after = state_after("fuse", Pair(), X)
    assert_expected_inline(
        after,
        """\
arg0_1: i8[16, 32] = constant left.codes
arg1_1: f32[16] = constant left.scale
arg2_1: f32[3, 32] = input
arg3_1: i8[16, 32] = constant right.codes
arg4_1: f32[16] = constant right.scale
view: f32[16, 1] = aten.view.default(arg1_1, [16, 1])
view_1: f32[16, 1] = aten.view.default(arg4_1, [16, 1])
cat_1: i8[32, 32] = aten.cat.default([arg0_1, arg3_1])
cat_2: f32[32, 1] = aten.cat.default([view, view_1])
quantized_linear_default_2: f32[3, 32] = qcompile.quantized_linear.default(arg2_1, cat_1, cat_2, None, None, None, None, None, 32, '', 'none')
slice_tensor: f32[3, 16] = aten.slice.Tensor(quantized_linear_default_2, -1, 0, 16)
slice_tensor_1: f32[3, 16] = aten.slice.Tensor(quantized_linear_default_2, -1, 16, 32)
cat: f32[3, 32] = aten.cat.default([slice_tensor, slice_tensor_1], -1)
return [cat]
""",
    )
    assert [row.note for row in state.sites[0].rows()] == ["one call for left, right"] * 2


def test_different_inputs_are_not_fused() -> None:
    class Chain(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.right(x + 1)

    state, before, after = state_after("fuse", Chain(), X)
    assert len(state.sites) == 2
    assert before == after


def test_a_fused_site_without_a_kernel_comes_apart_again() -> None:
    state, _, _ = state_after("choose", Pair(), X, disable=("zentorch", "native", "torch", "xpu", "rdna3"))
    assert len(state.sites) == 2
    assert all(site.kernel is None and not site.report.note for site in state.sites)


def test_one_linear_stays_alone() -> None:
    state, before, after = state_after("fuse", Int8(), X)
    assert before == after
    assert not state.sites[0].parts
