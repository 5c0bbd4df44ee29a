"""The native rounding to small floats gives the formula's numbers, bit by bit, at every level of this machine."""

import pytest
import torch
from support.float_inputs import inputs, same_bits
from support.native_weights import EVERY_DTYPE, EVERY_LEVEL, require_kernels
from torch import Tensor

from qcompile.float_rounding import FLOAT_KINDS, rounded

KINDS = pytest.mark.parametrize("kind", FLOAT_KINDS)
GLOBAL = (672.0, 1e-3, 3e7)  # of NVFP4: 448 * 6 / 4, and far from what x is


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


def scales(kind: str, dtype: torch.dtype) -> list[Tensor | None]:
    if kind == "nvfp4":
        return [torch.tensor([value]) for value in GLOBAL]
    return [torch.tensor([0.013], dtype=dtype)] if kind == "fp8_tensor" else [None]


def native(x: Tensor, scale: Tensor | None, kind: str, narrow: bool = True, level: int = -1) -> Tensor:
    y: Tensor = torch.ops.qcompile.native_round_floats(x, scale, FLOAT_KINDS[kind].number, narrow, level=level)
    return y


@KINDS
@EVERY_DTYPE
@EVERY_LEVEL
def test_is_the_formula(level: int, dtype: torch.dtype, kind: str) -> None:
    for words, x in inputs(dtype):
        for scale in scales(kind, dtype):
            assert same_bits(native(x, scale, kind, level=level), rounded(x, kind, scale)), words


@KINDS
@EVERY_DTYPE
@EVERY_LEVEL
def test_is_the_formula_in_float32(level: int, dtype: torch.dtype, kind: str) -> None:
    for words, x in inputs(dtype):
        for scale in scales(kind, torch.float32):
            assert same_bits(native(x, scale, kind, False, level), rounded(x.float(), kind, scale).to(dtype)), words


@EVERY_LEVEL
def test_a_token_of_any_length(level: int) -> None:
    for k in (1, 3, 4, 7, 15, 17, 100, 127, 129, 385):
        x = torch.randn(3, k, generator=torch.Generator().manual_seed(k)).bfloat16()
        assert same_bits(native(x, None, "fp8_token", level=level), rounded(x, "fp8_token", None))


@KINDS
def test_shapes(kind: str) -> None:
    (scale, *_) = scales(kind, torch.bfloat16)
    x = torch.randn(2, 5, 384).bfloat16()
    turned = x.transpose(0, 1)
    assert same_bits(native(turned, scale, kind), rounded(turned.contiguous(), kind, scale))
    assert native(x[:0], scale, kind).shape == (0, 5, 384)
    assert native(x[0, 0], scale, kind).shape == (384,)


def test_what_it_does_not_take() -> None:
    x, one = torch.ones(2, 40), torch.ones(1)
    for given, error in (
        ((x, None, 1, True), "x: expected shape .*K a multiple of 32, got"),
        ((x, one, 3, True), "scale: expected None"),
        ((x, None, 5, True), "scale: expected the static scale"),
        ((x, torch.ones(2), 5, True), "scale: expected one element"),
        ((x, None, 6, True), "kind: expected 0 to 5, got 6"),
        ((x.int(), None, 3, True), "x: expected bfloat16 or float16 or float32, got int32"),
    ):
        with pytest.raises(RuntimeError, match=error):
            torch.ops.qcompile.native_round_floats(*given)
