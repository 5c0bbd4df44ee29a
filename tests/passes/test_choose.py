"""choose: every site has a kernel or none, and every other kernel a reason."""

import pytest
import torch
from support.pass_texts import state_after
from support.modules import Int8
from torch._dynamo.exc import BackendCompilerFailed

from qcompile.errors import UnservedError
from qcompile.kernels import kernels

X = torch.randn(3, 32)


def test_the_named_kernel_is_taken_and_all_others_have_reasons() -> None:
    state, before, after = state_after("choose", Int8(), X, kernels=("reference",))
    row = state.sites[0].report
    assert row.kernel == "reference.quantized_linear"
    assert set(row.reasons) == set(kernels()) - {row.kernel}
    assert all(row.reasons.values())
    assert before == after


def test_disabled_targets_say_so() -> None:
    state, _, _ = state_after("choose", Int8(), X, disable=("native",))
    assert state.sites[0].report.reasons["native.int4"][0] == "disabled by option disable"


def test_the_reference_is_never_taken_silently() -> None:
    state, _, _ = state_after("choose", Int8(), X)
    assert state.sites[0].report.kernel != "reference.quantized_linear"


def test_fallback_error_lists_every_reason() -> None:
    with pytest.raises(BackendCompilerFailed, match="disabled by option disable") as caught:
        state_after("choose", Int8(), X, disable=("zentorch", "native", "torch", "xpu", "rdna3"), fallback="error")
    assert isinstance(caught.value.inner_exception, UnservedError)
