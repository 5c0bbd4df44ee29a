"""recognize: a proven weight becomes one canonical call; everything else stays, with a reason. More spellings: test_spellings.py."""

import torch
from expecttest import assert_expected_inline
from support.pass_texts import state_after
from support.modules import Int8
from torch import Tensor
from torch.nn.functional import linear

X = torch.randn(3, 32)


def test_a_scaled_weight() -> None:
    _, _, after = state_after("recognize", Int8(), X)
    assert_expected_inline(
        after,
        """\
arg0_1: i8[16, 32] = constant codes
arg1_1: f32[16] = constant scale
arg2_1: f32[3, 32] = input
view: f32[16, 1] = aten.view.default(arg1_1, [16, 1])
quantized_linear_default: f32[3, 16] = qcompile.quantized_linear.default(arg2_1, arg0_1, view, None, None, None, None, None, 32, '', 'none')
return [quantized_linear_default]
""",
    )


def test_bias_and_scale_behind_the_product() -> None:
    state, _, after = state_after("recognize", Int8(lambda m, x: linear(x, m.codes.float()) * m.scale + m.bias), X)
    assert after.count("qcompile.quantized_linear") == 1
    assert "aten.mul.Tensor(mm" not in after
    assert state.sites[0].site.has_bias


def declined(model: Int8) -> str:
    state, before, after = state_after("recognize", model, X)
    assert not state.sites
    assert before == after
    return state.declined[0].declined


def test_a_weight_with_noise_is_declined() -> None:
    noise = torch.randn(16, 32) * 0.3
    assert "does not become integers" in declined(Int8(lambda m, x: linear(x, m.codes.float() + noise)))


def test_a_weight_that_depends_on_the_input_is_declined() -> None:
    reason = declined(Int8(lambda m, x: linear(x, m.codes.float() * x.mean())))
    assert reason == "its weight depends on an input of the model, so it is no constant"


def test_a_weight_that_the_graph_changes_is_declined() -> None:
    def spelling(module: Int8, x: Tensor) -> Tensor:
        module.codes.copy_(module.codes + 1)
        return linear(x, module.weight())

    assert "changed by the graph itself" in declined(Int8(spelling))


def test_unhealthy_scales_are_declined() -> None:
    model = Int8()
    model.scale[3] = torch.nan
    assert "NaN" in declined(model)


def test_fuel_stops_rewriting() -> None:
    state, _, _ = state_after("recognize", Int8(), X, fuel=0)
    assert not state.sites
    assert "fuel" in state.declined[0].declined
