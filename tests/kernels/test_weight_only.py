"""W4A16 and W8A16 at every level of this machine: edge shapes, dtypes, zero points, act-order and bias against float64."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from support.native_problems import Problem, problems
from support.native_weights import (
    DTYPES,
    EVERY_DTYPE,
    EVERY_LEVEL,
    ROWS,
    TOLERANCE,
    WORST,
    Reference,
    Weight,
    activations,
    error_from,
    expected,
    reference,
    relative_error,
    require_kernels,
    tolerance,
    weight,
    weighted_error,
)
from torch import Tensor

# (N, K, group): N around the block of 16, K odd, one and around lines of 4 and 8, groups that divide K and one that does not.
SHAPES = (
    (1, 1, 1),
    (1, 7, 7),
    (15, 9, 9),
    (16, 128, 16),
    (17, 96, 32),
    (31, 64, 64),
    (32, 384, 128),
    (33, 257, 257),
    (40, 60, 20),
    (5, 1100, 1100),
    (48, 100, 32),
)


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


def product(
    w: Weight, x: Tensor, perm: Tensor | None = None, bias: Tensor | None = None, level: int = -1, packed: Tensor | None = None
) -> Tensor:
    op = torch.ops.qcompile.native_int4_linear if w.bits == 4 else torch.ops.qcompile.native_int8_a16_linear
    y: Tensor = op(x, w.pack() if packed is None else packed, perm, bias, w.n, w.k, w.group, level=level)
    return y


@dataclass(frozen=True, slots=True)
class EdgeShape:
    """A weight, packed, and inputs of every number of rows with their products."""

    w: Weight
    packed: Tensor
    products: list[tuple[Tensor, Reference]]


@cache
def edge_shapes(bits: int, zeros: bool, dtype: torch.dtype) -> list[EdgeShape]:
    """The problems that all levels solve; what is right is computed once."""
    found: list[EdgeShape] = []
    for n, k, group in SHAPES:
        w = weight(n, k, group, bits=bits, zeros=zeros, seed=n)
        inputs = [activations(m, k, dtype, seed=m) for m in ROWS]
        found.append(EdgeShape(w, w.pack(), [(x, reference(x, w)) for x in inputs]))
    return found


@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize("zeros", (False, True), ids=("symmetric", "zeros"))
@EVERY_DTYPE
@EVERY_LEVEL
def test_edge_shapes(level: int, dtype: torch.dtype, zeros: bool, bits: int) -> None:
    for shape in edge_shapes(bits, zeros, dtype):
        for x, right in shape.products:
            y = product(shape.w, x, level=level, packed=shape.packed)
            assert y.shape == (x.shape[0], shape.w.n)
            assert y.dtype is dtype
            error = error_from(y, right)
            assert error <= tolerance(dtype, y.numel()), (shape.w.n, shape.w.k, shape.w.group, x.shape[0], error)


@EVERY_DTYPE
@EVERY_LEVEL
def test_act_order_and_bias(level: int, dtype: torch.dtype) -> None:
    w = weight(37, 192, 32, zeros=True)
    perm = torch.randperm(192, generator=torch.Generator().manual_seed(3))
    for bias_dtype in DTYPES:
        bias = torch.randn(37, generator=torch.Generator().manual_seed(4)).to(bias_dtype)
        for m in (1, 6, 14):
            x = activations(m, 192, dtype)
            y = product(w, x, perm, bias, level)
            assert relative_error(y, expected(x, w, perm, bias)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("zero", range(17))
@EVERY_LEVEL
def test_every_zero_point(level: int, zero: int) -> None:
    w = weight(16, 64, 32, zeros=True)
    w = Weight(w.codes, w.scales, torch.full_like(w.codes[:, :2], zero), 32, 4)
    for dtype in DTYPES:
        x = activations(3, 64, dtype)
        assert relative_error(product(w, x, level=level), expected(x, w)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("scales", DTYPES, ids=("bf16", "fp16", "f32"))
@EVERY_LEVEL
def test_scale_dtypes_keep_every_bit(level: int, scales: torch.dtype) -> None:
    w = weight(32, 256, 64, scales=scales)
    x = activations(4, 256, torch.float32)
    assert relative_error(product(w, x, level=level), expected(x, w)) <= 1e-6


@pytest.mark.parametrize("shape", ((3, 4, 64), (64,), (2, 0, 64), (1, 2, 3, 64)), ids=str)
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    w = weight(24, 64, 32)
    x = activations(max(1, torch.Size(shape[:-1]).numel()), 64, torch.bfloat16)[: torch.Size(shape[:-1]).numel()].reshape(shape)
    y = product(w, x)
    assert y.shape == (*shape[:-1], 24)
    assert relative_error(y, expected(x, w)) <= TOLERANCE[torch.bfloat16]


def test_strided_input() -> None:
    w = weight(24, 64, 32)
    x = activations(6, 128, torch.bfloat16)[::2, ::2]
    assert relative_error(product(w, x), expected(x, w)) <= TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=("bf16", "f32"))
def test_many_rows_in_several_chunks(dtype: torch.dtype) -> None:
    """More rows than one preparation takes (768): the second chunk lands behind the first."""
    w = weight(16, 32, 32)
    x = activations(1601, 32, dtype)
    y, wanted = product(w, x), expected(x, w)
    assert relative_error(y, wanted) <= TOLERANCE[dtype]
    assert relative_error(y[1536:], wanted[1536:]) <= TOLERANCE[dtype]  # the last chunk alone


@EVERY_LEVEL
def test_nan_and_infinity_stay_in_their_rows(level: int) -> None:
    w = weight(16, 64, 32, zeros=True)
    x = activations(3, 64, torch.bfloat16)
    clean = product(w, x, level=level)
    x[1, 5], x[2, 7] = float("nan"), float("inf")
    y = product(w, x, level=level)
    assert torch.equal(y[0], clean[0])
    assert bool(torch.isnan(y[1]).all())
    assert not bool(torch.isfinite(y[2]).any())


@settings(max_examples=1000, deadline=None)
@given(problem=problems())
def test_any_problem(problem: Problem) -> None:
    y = product(problem.w, problem.x, problem.perm, problem.bias, problem.level)
    assert y.dtype is problem.x.dtype
    assert weighted_error(y, problem.ordered, problem.w, problem.bias) <= WORST[y.dtype]
