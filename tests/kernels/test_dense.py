"""The dense product of few rows equals float64 at every level, reads the weight where it lies, and hands many rows to PyTorch."""

from collections.abc import Callable

import pytest
import torch
from support.native_weights import EVERY_DTYPE, EVERY_LEVEL, TOLERANCE, require_kernels
from torch import Tensor

from qcompile.hardware import platform
from qcompile.targets import native_dense

# N, K around the registers of every level (4, 8, 16 and 32 values) and their groups of four.
SIZES = ((37, 100), (5, 64), (9, 33), (17, 7), (1, 1), (8, 128), (33, 95), (3, 4097))


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()
    native_dense.missing(platform())
    if not hasattr(torch.ops.qcompile, "native_dense_linear"):
        pytest.skip("the C++ kernels were built before this one was added")


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None, level: int = -1) -> Tensor:
    result: Tensor = torch.ops.qcompile.native_dense_linear(x, weight, bias, level=level)
    return result


@EVERY_LEVEL
@EVERY_DTYPE
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_equals_float64(rows: int, dtype: torch.dtype, level: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    for n, k in SIZES:
        x = torch.randn(rows, k, generator=generator).to(dtype)
        weight = torch.randn(n, k + 3, generator=generator).to(dtype)[:, :k]
        for bias in (None, torch.randn(n, generator=generator).to(dtype)):
            want = x.double() @ weight.double().t() + (0.0 if bias is None else bias.double())
            got = dense(x, weight, bias, level)
            assert got.dtype is dtype and got.is_contiguous()
            assert (got.double() - want).norm() <= TOLERANCE[dtype] * want.norm(), (n, k)


def test_leading_dimensions_and_strides() -> None:
    x, weight = torch.randn(2, 1, 12), torch.randn(5, 6)
    assert torch.allclose(dense(x[..., ::2], weight), x[..., ::2] @ weight.t(), atol=1e-6)
    assert torch.allclose(dense(x[0, 0, :6], weight), weight @ x[0, 0, :6], atol=1e-6)
    turned = torch.randn(6, 5)
    assert torch.allclose(dense(x[..., :6], turned.t()), x[..., :6] @ turned, atol=1e-6)


def test_nothing_to_do() -> None:
    assert dense(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)
    assert dense(torch.zeros(2, 4), torch.zeros(0, 4)).shape == (2, 0)
    assert torch.equal(dense(torch.zeros(2, 0), torch.zeros(3, 0), torch.ones(3)), torch.ones(2, 3))


X, W = torch.zeros(1, 8), torch.zeros(4, 8)
WRONG: dict[str, tuple[Callable[[], Tensor], str]] = {
    "dtype of x": (lambda: dense(X.long(), W), "x: expected bfloat16 or float16 or float32, got int64"),
    "dtype of weight": (lambda: dense(X, W.half()), "weight: expected float32, got float16"),
    "weight": (lambda: dense(X, W[:, :4]), r"weight: expected shape \[N, 8\] for this x, got \[4, 4\]"),
    "bias": (lambda: dense(X, W, torch.zeros(3)), r"bias: expected shape \[4\], got \[3\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, text = WRONG[name]
    with pytest.raises(RuntimeError, match=text):
        call()


@pytest.mark.parametrize("rows", [1, 5])
def test_operator_is_well_behaved(rows: int) -> None:
    arguments = (torch.randn(rows, 16), torch.randn(8, 16), torch.randn(8))
    torch.library.opcheck(torch.ops.qcompile.native_dense_linear.default, arguments)
