"""Activations that a graph rounds to NVFP4, MXFP4 or MXFP8 are found where the numbers are the same, bit for bit, and only there."""

from typing import Any

import pytest
import torch
from support.float4_roundings import LOOK_ALIKES, ROUNDINGS, Round, by_bucketize, multiplied, rounds
from support.float_inputs import inputs
from support.spellings import BF16, F32, Written, linear
from torch import Tensor

import qcompile
from qcompile.activations import ActivationQuant
from qcompile.reporting.rows import SiteReport

pytestmark = pytest.mark.usefixtures("fresh_compiler")

K = 64
_OFF = 2.0**-16  # of a token's largest number: in float32 a kernel's sums are rounded
DTYPES = pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "f32"])


def model_of(rounding: Round, overall: float = 672.0) -> Written:
    """Its weight is the identity, so that its result is its rounded input."""
    tensors = {"w": torch.eye(K, dtype=torch.int8), "g": torch.tensor([overall]), "inverse": 1.0 / torch.tensor([overall])}
    return Written(lambda m, x: linear(rounding(m, x), m.w.to(x.dtype)), tensors)


def served(model: Written, dtype: torch.dtype) -> SiteReport:
    """The report's row; the compiled model gives the numbers of eager mode."""
    x = torch.randn(6, K, generator=torch.Generator().manual_seed(9)).to(dtype)
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", "measure": False})(x)
    (row,) = qcompile.report().sites
    assert row.kernel is not None
    most = float(want.abs().nan_to_num().max())
    assert torch.allclose(got, want, rtol=0.0, atol=most * _OFF if dtype is F32 else 0.0, equal_nan=True)
    return row


def other_numbers(rounding: Round, activation: str, dtype: torch.dtype) -> list[str]:
    """For which inputs the rounding gives other numbers than the formula; a token with NaN is NaN altogether in any product."""
    model, different = model_of(rounding), list[str]()
    for words, (x,) in inputs(dtype):
        ours, theirs = (
            ActivationQuant.parse(activation).apply(x, model.g if "nvfp4" in activation else None),
            rounding(model, x.clone()),
        )
        lost = theirs.isnan().any(-1, keepdim=True) & ours.isnan().any(-1, keepdim=True)
        if theirs.dtype is not ours.dtype or not bool(((theirs == ours) | lost).all()):
            different.append(words)
    return different


@DTYPES
@pytest.mark.parametrize("name", ROUNDINGS)
def test_is_found_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    words, rounding = ROUNDINGS[name]
    row = served(model_of(rounding()), dtype)
    assert row.scheme.endswith(words)
    assert other_numbers(rounding(), row.activation, dtype) == []


@DTYPES
@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_what_is_nearly_one_stays_in_the_graph(name: str, dtype: torch.dtype) -> None:
    """The weight is served all the same, with activations as the graph makes them."""
    overall = 512.0 if "halfway" in name else 672.0  # a power of two, so that numbers of 16 bits lie halfway
    assert served(model_of(LOOK_ALIKES[name], overall), dtype).activation == "none"


@pytest.mark.parametrize("overall", [2688.0 / 5.37, 672.0, 2048.0])
@DTYPES
def test_a_global_scale_that_multiplies(dtype: torch.dtype, overall: float) -> None:
    """It counts as one that divides where that gives the same numbers: of 16 bits mostly, of float32 for powers of two."""
    found = overall == 2048.0 or (dtype is BF16 and overall != 672.0)  # one over 672 is no float, and 112 / 672 halfway
    assert served(model_of(rounds(16, multiplied, by_bucketize), overall), dtype).scheme.endswith("a4 nvfp4") == found


def test_a_changed_global_scale_is_noticed() -> None:
    _, rounding = ROUNDINGS["nvfp4, bucketize"]
    model, x = model_of(rounding()), torch.randn(4, K)
    compiled: Any = torch.compile(model, backend="qcompile", options={"rest": "eager", "measure": False})
    with torch.no_grad():
        for overall in (672.0, 100.0, 3.0):
            model.g.fill_(overall)  # type: ignore[operator,union-attr]
            want: Tensor = model(x)
            assert torch.allclose(compiled(x), want, rtol=0.0, atol=float(want.abs().max()) * _OFF)
            assert bool((want != x).any())
