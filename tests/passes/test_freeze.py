"""freeze: parameters and buffers become constants, unless a change of them could not be noticed or is in the graph."""

import torch
from expecttest import assert_expected_inline
from support.pass_texts import state_after
from support.modules import Int8
from torch import Tensor

X = torch.randn(3, 32)


def test_buffers_are_constants_and_arguments_are_not() -> None:
    _, _, after = state_after("freeze", Int8(), X)
    assert_expected_inline(
        after,
        """\
arg0_1: i8[16, 32] = constant codes
arg1_1: f32[16] = constant scale
arg2_1: f32[3, 32] = input
_to_copy: f32[16, 32] = aten._to_copy.default(arg0_1, dtype=float32)
unsqueeze: f32[16, 1] = aten.unsqueeze.default(arg1_1, 1)
mul: f32[16, 32] = aten.mul.Tensor(_to_copy, unsqueeze)
permute: f32[32, 16] = aten.permute.default(mul, [1, 0])
mm: f32[3, 16] = aten.mm.default(arg2_1, permute)
return [mm]
""",
    )


def test_a_buffer_that_the_graph_changes_is_no_constant() -> None:
    def spelling(module: Int8, x: Tensor) -> Tensor:
        module.codes.copy_(module.codes + 1)
        return torch.nn.functional.linear(x, module.weight())

    state, _, _ = state_after("freeze", Int8(spelling), X)
    assert [constant.path for constant in state.constants.values()] == ["scale"]
    assert list(state.refused.values()) == ["its weight is changed by the graph itself, so it is no constant"]


def test_inference_tensors_are_no_constants() -> None:
    with torch.inference_mode():
        model = Int8()
    state, _, _ = state_after("freeze", model, X)
    assert not state.constants
    assert all("torch.inference_mode()" in reason for reason in state.refused.values())
