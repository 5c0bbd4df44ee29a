"""normalize: a product with a quantized weight has one spelling; dense ones keep theirs."""

import torch
from expecttest import assert_expected_inline
from support.pass_texts import state_after
from support.modules import Int8

X = torch.randn(3, 32)


def test_the_weight_on_the_left() -> None:
    _, _, after = state_after("normalize", Int8(lambda m, x: m.weight() @ x.T), X)
    assert_expected_inline(
        after,
        """\
arg0_1: i8[16, 32] = constant codes
arg1_1: f32[16] = constant scale
arg2_1: f32[3, 32] = input
_to_copy: f32[16, 32] = aten._to_copy.default(arg0_1, dtype=float32)
unsqueeze: f32[16, 1] = aten.unsqueeze.default(arg1_1, 1)
mul: f32[16, 32] = aten.mul.Tensor(_to_copy, unsqueeze)
permute: f32[32, 3] = aten.permute.default(arg2_1, [1, 0])
permute_default: f32[3, 32] = aten.permute.default(permute, [1, 0])
permute_default_1: f32[32, 16] = aten.permute.default(mul, [1, 0])
mm_default: f32[3, 16] = aten.mm.default(permute_default, permute_default_1)
permute_default_2: f32[16, 3] = aten.permute.default(mm_default, [1, 0])
return [permute_default_2]
""",
    )


def test_one_row_without_a_dimension() -> None:
    _, _, after = state_after("normalize", Int8(lambda m, x: m.weight() @ x[0]), X)
    assert "aten.mm.default" in after and "aten.mv" not in after


def test_a_batch_that_repeats_one_matrix() -> None:
    _, _, after = state_after("normalize", Int8(lambda m, x: torch.bmm(x[None], m.weight().T[None])), X)
    assert "aten.mm.default" in after and "aten.bmm" not in after


def test_dense_products_keep_their_spelling() -> None:
    dense = torch.randn(16, 32)
    _, before, after = state_after("normalize", lambda x: dense @ x.T, X)
    assert before == after
