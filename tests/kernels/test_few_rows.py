"""The operators that round x run few rows without rounding, if asked to: bit for bit what the operators for that give."""

import pytest
import torch
from support.native_weights import EVERY_DTYPE, EVERY_LEVEL, activations, require_kernels, weight
from torch import Tensor

FEW = 4


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


def both(x: Tensor, bits: int, level: int, few: int) -> tuple[Tensor, Tensor, Tensor]:
    """(with `few`, rounded, not rounded) of one weight with a permutation and a bias."""
    w = weight(37, 320, 64, bits=bits, zeros=True)
    common = (w.pack(), torch.randperm(320), torch.randn(37))
    shape, rounding = (37, 320, 64), (0, 127.0, -127.0, False)
    ops = torch.ops.qcompile
    rounds = ops.native_int4_a8_linear if bits == 4 else ops.native_int8_linear
    plain = ops.native_int4_linear if bits == 4 else ops.native_int8_a16_linear
    return (
        rounds(x, *common, None, None, *shape, *rounding, few, level=level),
        rounds(x, *common, None, None, *shape, *rounding, level=level),
        plain(x, *common, *shape, level=level),
    )


@pytest.mark.parametrize("bits", (4, 8))
@EVERY_DTYPE
@EVERY_LEVEL
def test_fewer_rows_are_not_rounded(level: int, dtype: torch.dtype, bits: int) -> None:
    for shape in ((0,), (1,), (FEW - 1,), (1, FEW - 1), (FEW,), (2, FEW - 1), (40,)):
        x = activations(torch.Size(shape).numel(), 320, dtype).reshape(*shape, 320)
        mixed, rounded, plain = both(x, bits, level, FEW)
        assert torch.equal(mixed, plain if shape[0] * (shape[1] if len(shape) > 1 else 1) < FEW else rounded), shape
        assert x.numel() == 0 or not torch.equal(plain, rounded)


def test_a_negative_number_of_rows() -> None:
    with pytest.raises(RuntimeError, match="few: expected a number of rows, got -1"):
        both(activations(2, 320, torch.bfloat16), 4, -1, -1)
