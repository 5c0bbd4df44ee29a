"""W8A8 and W4A8 at every level of this machine: x rounded as ActivationQuant says, then products against float64."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.native_problems import Problem, problems
from support.native_weights import (
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

from qcompile.activations import ActivationQuant
from qcompile.targets.native import ROUNDINGS

SHAPES = ((1, 1, 1), (15, 9, 9), (17, 96, 32), (32, 384, 128), (33, 257, 257), (40, 60, 20), (5, 1100, 1100))
TOKEN = (ActivationQuant("token", 127.5, -128), ActivationQuant("token", 127.0, -127))


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


def product(
    w: Weight,
    x: Tensor,
    rounding: ActivationQuant,
    *,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    perm: Tensor | None = None,
    bias: Tensor | None = None,
    level: int = -1,
) -> Tensor:
    op = torch.ops.qcompile.native_int4_a8_linear if w.bits == 4 else torch.ops.qcompile.native_int8_linear
    y: Tensor = op(
        x,
        w.pack(),
        perm,
        bias,
        scale,
        zero,
        w.n,
        w.k,
        w.group,
        ROUNDINGS[rounding.kind],
        rounding.divisor,
        float(rounding.low),
        rounding.arithmetic == "input",
        level=level,
    )
    return y


def rounded_by_group(x: Tensor, group: int) -> Tensor:
    """Symmetric, one scale for each row and group of K; float32."""
    m, k = x.shape
    groups = -(-k // group)
    padded = torch.nn.functional.pad(x.float(), (0, groups * group - k)).reshape(m, groups, group)
    return ActivationQuant("token", 127.0, -127).apply(padded).reshape(m, groups * group)[:, :k]


def rounded(x: Tensor, rounding: ActivationQuant, scale: Tensor | None = None, zero: Tensor | None = None) -> Tensor:
    """x as the kernels see it: in float32 arithmetic the codes times the step are not rounded to the dtype of x again."""
    if rounding.arithmetic == "input":
        return rounding.apply(x, scale, zero)
    return rounding.apply(x.float(), scale, zero)


@cache
def per_token(dtype: torch.dtype, rounding: ActivationQuant, bits: int) -> list[tuple[Weight, Tensor, Reference]]:
    """The problems that all levels solve; what is right is computed once."""
    found: list[tuple[Weight, Tensor, Reference]] = []
    for n, k, group in SHAPES:
        for zeros in (False, True):
            w = weight(n, k, group, bits=bits, zeros=zeros, seed=n)
            inputs = [activations(m, k, dtype, seed=m) for m in ROWS]
            found += [(w, x, reference(rounded(x, rounding), w)) for x in inputs]
    return found


@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize("rounding", TOKEN, ids=lambda r: r.spec)
@EVERY_DTYPE
@EVERY_LEVEL
def test_per_token(level: int, dtype: torch.dtype, rounding: ActivationQuant, bits: int) -> None:
    for w, x, right in per_token(dtype, rounding, bits):
        y = product(w, x, rounding, level=level)
        assert y.shape == (x.shape[0], w.n)
        error = error_from(y, right)
        assert error <= tolerance(dtype, y.numel()), (w.n, w.k, w.group, w.zeros is not None, x.shape[0], error)


@pytest.mark.parametrize("arithmetic", ("float32", "input"))
@pytest.mark.parametrize("zeros", (False, True), ids=("symmetric", "zeros"))
@EVERY_DTYPE
@EVERY_LEVEL
def test_every_kind(level: int, dtype: torch.dtype, zeros: bool, arithmetic: str) -> None:
    w = weight(37, 320, 64, bits=8, zeros=zeros)
    x = activations(7, 320, dtype)
    bias = torch.randn(37)
    perm = torch.randperm(320)
    for kind in ("token", "token_asymmetric", "tensor"):
        rounding = ActivationQuant(kind, arithmetic=arithmetic)
        scale = torch.tensor([0.11], dtype=dtype) if kind == "tensor" else None
        for zero in (None, torch.tensor([-7.0])) if kind == "tensor" else (None,):
            y = product(w, x, rounding, scale=scale, zero=zero, perm=perm, bias=bias, level=level)
            wanted = expected(rounded(x, rounding, scale, zero), w, perm, bias)
            # In "input" arithmetic the canonical x' is rounded once more to the dtype of x, which the kernels leave out.
            assert relative_error(y, wanted) <= TOLERANCE[dtype] * (2 if arithmetic == "input" else 1), (kind, zero)


@EVERY_LEVEL
def test_one_sided_rows(level: int) -> None:
    """All positive, all negative, all zero: the zero point of asymmetric rounding is then at an end, or the scale zero."""
    w = weight(16, 64, 64, bits=8)
    x = activations(4, 64, torch.float32)
    x[0].abs_()
    x[1] = -x[1].abs()
    x[2] = 0.0
    for kind in ("token", "token_asymmetric"):
        rounding = ActivationQuant(kind)
        y = product(w, x, rounding, level=level)
        assert relative_error(y, expected(rounding.apply(x), w)) <= 1e-6
        assert bool((y[2] == 0).all())


@pytest.mark.parametrize("group", (16, 32, 128, 384))
@EVERY_LEVEL
def test_w4a8_per_group(level: int, group: int) -> None:
    w = weight(33, 384, group, zeros=True)
    for m in (1, 4, 13, 25):
        x = activations(m, 384, torch.float32)
        op = torch.ops.qcompile.native_int4_a8_linear
        y = op(x, w.pack(), None, None, None, None, 33, 384, group, ROUNDINGS["group"], 127.0, -127.0, False, level=level)
        assert relative_error(y, expected(rounded_by_group(x, group), w)) <= 1e-6


@EVERY_LEVEL
def test_largest_sums_do_not_overflow(level: int) -> None:
    """The longest group there may be, with every factor at its end."""
    k = 65536
    w = Weight(torch.full((16, k), -128, dtype=torch.int8), torch.full((16, 1), 2.0**-20), None, k, 8)
    x = torch.ones(2, k)
    x[1] = -1.0
    for rounding in (ActivationQuant("token", 127.0, -127), ActivationQuant("token_asymmetric")):
        y = product(w, x, rounding, level=level)
        assert relative_error(y, expected(rounding.apply(x), w)) <= 1e-6


@pytest.mark.parametrize("bits", (4, 8))
@EVERY_LEVEL
def test_nan_and_infinity_stay_in_their_rows(level: int, bits: int) -> None:
    w = weight(16, 64, 64, bits=bits)
    x = activations(3, 64, torch.bfloat16)
    clean = product(w, x, TOKEN[0], level=level)
    x[1, 5], x[2, 7] = float("nan"), float("inf")
    y = product(w, x, TOKEN[0], level=level)
    assert torch.equal(y[0], clean[0])
    assert bool(torch.isnan(y[1:]).all())


@settings(max_examples=1000, deadline=None)
@given(problem=problems(), data=st.data())
def test_any_problem(problem: Problem, data: st.DataObject) -> None:
    """Every kind of rounding that the weight's operator has, in both arithmetics."""
    w, x = problem.w, problem.x
    kind = data.draw(st.sampled_from(("token", "tensor") if w.bits == 4 else ("token", "token_asymmetric", "tensor")), "kind")
    arithmetic = data.draw(st.sampled_from(("float32", "input")), "arithmetic")
    rounding = ActivationQuant(kind, *data.draw(st.sampled_from(((127.5, -128), (127.0, -127))), "ends"), arithmetic)
    scale = torch.tensor([data.draw(st.sampled_from((0.03, 0.11, 1.0)), "scale")], dtype=x.dtype) if kind == "tensor" else None
    zero = torch.tensor([float(data.draw(st.integers(-128, 127), "zero"))]) if scale is not None and w.bits == 8 else None
    y = product(w, x, rounding, scale=scale, zero=zero, perm=problem.perm, bias=problem.bias, level=problem.level)
    # In "input" arithmetic the canonical x' is rounded once more to the dtype of x, which the kernels leave out.
    most = WORST[y.dtype] * (2 if arithmetic == "input" else 1)
    assert weighted_error(y, rounded(problem.ordered, rounding, scale, zero), w, problem.bias) <= most


@settings(max_examples=300, deadline=None)
@given(problem=problems(widths=(4,)))
def test_any_problem_by_group(problem: Problem) -> None:
    w = problem.w
    op = torch.ops.qcompile.native_int4_a8_linear
    arguments = (problem.perm, problem.bias, None, None, w.n, w.k, w.group, ROUNDINGS["group"], 127.0, -127.0, False)
    y = op(problem.x, w.pack(), *arguments, level=problem.level)
    assert weighted_error(y, rounded_by_group(problem.ordered, w.group), w, problem.bias) <= WORST[y.dtype]
