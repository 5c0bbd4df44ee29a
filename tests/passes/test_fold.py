"""fold: packed weights are graph inputs with values; equal ones exist once."""

import torch
from expecttest import assert_expected_inline
from support.pass_texts import state_after
from support.modules import Int8, Pair
from torch import Tensor

X = torch.randn(3, 32)
NONE = ("zentorch", "native", "torch", "xpu", "rdna3")


def test_packed_weights_are_inputs() -> None:
    state, _, after = state_after("fold", Int8(), X, kernels=("reference",))
    assert_expected_inline(
        after,
        """\
arg0_1: i8[16, 32] = constant codes
arg1_1: f32[16] = constant scale
arg2_1: f32[3, 32] = input
packed_0: i8[16, 32] = constant codes (packed 0)
packed_1: f32[16, 1] = constant codes (packed 1)
reference_quantized_linear: f32[3, 16] = reference.quantized_linear(arg2_1, packed_0, packed_1)
return [reference_quantized_linear]
""",
    )
    assert [tuple(folded.tensor.shape) for folded in state.folded.values()] == [(16, 32), (16, 1)]


def test_an_unserved_weight_becomes_dense() -> None:
    model = Int8()
    state, _, _ = state_after("fold", model, X, disable=NONE)
    (folded,) = state.folded.values()
    assert torch.equal(folded.tensor.t(), model.weight())


def test_or_stays_as_it_was() -> None:
    state, before, after = state_after("fold", Int8(), X, disable=NONE, fallback="packed")
    assert not state.folded
    assert before == after


def test_tied_weights_are_packed_once() -> None:
    class Tied(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.left(x * 2)

    state, _, _ = state_after("fold", Tied(), X, kernels=("reference",))
    assert len(state.sites) == 2
    assert len(state.folded) == 2  # codes and scales, once
