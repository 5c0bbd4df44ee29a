"""lower: kernel calls become the operators they consist of; a site without a kernel is back as it was."""

import torch
from expecttest import assert_expected_inline
from support.pass_texts import state_after
from support.modules import Int8

X = torch.randn(3, 32)
NONE = ("zentorch", "native", "torch", "xpu", "rdna3")


def test_calls_become_operators() -> None:
    _, _, after = state_after("lower", Int8(), X, kernels=("reference",))
    assert_expected_inline(
        after,
        """\
arg0_1: i8[16, 32] = constant codes
arg1_1: f32[16] = constant scale
arg2_1: f32[3, 32] = input
packed_0: i8[16, 32] = constant codes (packed 0)
packed_1: f32[16, 1] = constant codes (packed 1)
quantized_linear: f32[3, 16] = qcompile.quantized_linear.default(arg2_1, packed_0, packed_1, None, None, None, None, None, 32, '', 'none')
return [quantized_linear]
""",
    )


def test_an_unserved_site_is_back_as_it_was() -> None:
    _, original, _ = state_after("freeze", Int8(), X, disable=NONE, fallback="packed")
    _, _, after = state_after("lower", Int8(), X, disable=NONE, fallback="packed")
    assert after == original.replace("arg0_1: i8[16, 32] = input", "arg0_1: i8[16, 32] = constant codes").replace(
        "arg1_1: f32[16] = input", "arg1_1: f32[16] = constant scale"
    )
