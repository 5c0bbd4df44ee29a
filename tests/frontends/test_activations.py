"""Rounded activations equal compressed-tensors' own, bit by bit, in every dtype that it computes in (the dtype of the input)."""

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.meaning import sqnr_db
from qcompile.operators import fake_quantize

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPE = (3, 17, 96)


def library(part: str) -> Any:
    return import_module(f"compressed_tensors.quantization.{part}")


def theirs(x: Tensor, scale: Tensor | None = None, zero: Tensor | None = None, **fields: Any) -> Tensor:
    """x as compressed-tensors' forward rounds it; x is 3-D, as in its Linear layers."""
    args = library("quant_args").QuantizationArgs(num_bits=8, **fields)
    if fields["dynamic"]:
        scale, zero = library("utils").compute_dynamic_scales_and_zp(value=x, args=args, module=torch.nn.Module())
    result: Tensor = library("lifecycle.forward").fake_quantize(x=x, scale=scale, zero_point=zero, args=args)
    return result


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """Ordinary tokens, outliers, all-zero tokens, one-sided tokens, constant tokens, tiny and large values."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(SHAPE, generator=generator)
    outliers = base * torch.where(torch.rand(SHAPE, generator=generator) < 0.01, 60.0, 1.0)
    zeros = base.clone()
    zeros[1] = 0
    zeros[2, 3] = -0.0
    ties = torch.arange(-128, 127).repeat(12)[: SHAPE[2] * 17].reshape(1, 17, SHAPE[2]) / 2
    cases = [base, outliers, zeros, base.abs(), -base.abs(), torch.full(SHAPE, 0.3), base * 1e-3, base * 1e-7, base * 100, ties]
    return [case.to(dtype) for case in cases]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dynamic_per_token_symmetric(dtype: torch.dtype) -> None:
    quant = ActivationQuant(kind="token", arithmetic="input")
    for x in inputs(dtype):
        assert torch.equal(quant.apply(x), theirs(x, strategy="token", dynamic=True, symmetric=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dynamic_per_token_asymmetric(dtype: torch.dtype) -> None:
    quant = ActivationQuant(kind="token_asymmetric", arithmetic="input")
    for x in inputs(dtype):
        assert torch.equal(quant.apply(x), theirs(x, strategy="token", dynamic=True, symmetric=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.01, 0.5, 0.03])
@pytest.mark.parametrize("zero", [None, 0, -128, 127, 13])
def test_static_per_tensor(dtype: torch.dtype, scale: float, zero: int | None) -> None:
    quant = ActivationQuant(kind="tensor", arithmetic="input")
    step = torch.tensor([scale]).to(dtype)
    point = None if zero is None else torch.tensor([zero], dtype=torch.int8)
    for x in inputs(dtype):
        expected = theirs(x, step, point, strategy="tensor", dynamic=False, symmetric=zero is None)
        assert torch.equal(quant.apply(x, step, point), expected)


@pytest.mark.parametrize("kind", ["token", "token_asymmetric"])
def test_in_float32_both_arithmetics_are_one(kind: str) -> None:
    for x in inputs(torch.float32):
        wide, narrow = ActivationQuant(kind=kind), ActivationQuant(kind=kind, arithmetic="input")
        assert torch.equal(wide.apply(x), narrow.apply(x))


def test_bfloat16_arithmetic_costs_accuracy_that_float32_keeps() -> None:
    x = inputs(torch.bfloat16)[0]
    wide = sqnr_db(x, ActivationQuant(kind="token").apply(x))
    narrow = sqnr_db(x, ActivationQuant(kind="token", arithmetic="input").apply(x))
    assert narrow < wide < narrow + 6
    assert narrow > 40


@pytest.mark.parametrize(
    "quant",
    [
        ActivationQuant(),
        ActivationQuant(kind="token"),
        ActivationQuant(kind="token", divisor=127.0, low=-127),
        ActivationQuant(kind="token", arithmetic="input"),
        ActivationQuant(kind="token_asymmetric", arithmetic="input"),
        ActivationQuant(kind="tensor"),
    ],
)
def test_the_spelling_is_read_back(quant: ActivationQuant) -> None:
    assert ActivationQuant.parse(quant.spec) == quant


def test_the_operator_computes_the_same() -> None:
    quant = ActivationQuant(kind="token", arithmetic="input")
    x = inputs(torch.bfloat16)[1]
    assert torch.equal(fake_quantize(x, None, None, quant.spec), quant.apply(x))
    assert fake_quantize(x, None, None, "none").data_ptr() != x.data_ptr()


def test_the_librarys_own_scale_of_a_matrix_is_one_for_all_tokens() -> None:
    """The fact that ActivationQuant's docstring names; if this fails, the library has changed and the docstring must."""
    x = inputs(torch.float32)[1][0]
    args = library("quant_args").QuantizationArgs(num_bits=8, strategy="token", dynamic=True, symmetric=True)
    scale, _ = library("utils").compute_dynamic_scales_and_zp(value=x, args=args, module=torch.nn.Module())
    assert scale.numel() == 1
