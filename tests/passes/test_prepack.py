"""prepack: a served site is a kernel call on packed weights, whose packing stands in the graph."""

import torch
from expecttest import assert_expected_inline
from support.pass_texts import state_after
from support.modules import Int8

X = torch.randn(3, 32)


def test_packing_stands_in_the_graph() -> None:
    _, _, after = state_after("prepack", Int8(), X, kernels=("reference",))
    assert_expected_inline(
        after,
        """\
arg0_1: i8[16, 32] = constant codes
arg1_1: f32[16] = constant scale
arg2_1: f32[3, 32] = input
view: f32[16, 1] = aten.view.default(arg1_1, [16, 1])
reference_quantized_linear: f32[3, 16] = reference.quantized_linear(arg2_1, arg0_1, view)
return [reference_quantized_linear]
""",
    )


def test_an_unserved_site_is_not_packed() -> None:
    _, before, after = state_after("prepack", Int8(), X, disable=("zentorch", "native", "torch", "xpu", "rdna3"))
    assert before == after
