"""cleanup: nothing dead is left, and raw weights that nobody reads are no inputs any more."""

import torch
from expecttest import assert_expected_inline
from support.pass_texts import state_after
from support.modules import Int8

X = torch.randn(3, 32)


def test_raw_weights_are_gone() -> None:
    state, _, after = state_after("cleanup", Int8(), X, kernels=("reference",))
    assert_expected_inline(
        after,
        """\
arg2_1: f32[3, 32] = input
packed_0: i8[16, 32] = constant codes (packed 0)
packed_1: f32[16, 1] = constant codes (packed 1)
quantized_linear: f32[3, 16] = qcompile.quantized_linear.default(arg2_1, packed_0, packed_1, None, None, None, None, None, 32, '', 'none')
return [quantized_linear]
""",
    )
    assert all(node.users for node in state.graph.nodes if node.op == "call_function")
    assert all("val" in node.meta for node in state.graph.nodes if node.op != "output")
