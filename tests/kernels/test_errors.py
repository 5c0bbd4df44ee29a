"""Wrong arguments are errors that name the operator, the argument, what was expected and what came."""

from collections.abc import Callable

import pytest
import torch
from support.native_weights import require_kernels, weight
from torch import Tensor

# Filled once the operators are there.
OPS = torch.ops.qcompile


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


def codes(*shape: int, dtype: torch.dtype = torch.int8) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


PACK_CASES: tuple[tuple[str, Callable[[], Tensor], str], ...] = (
    (
        "codes dtype",
        lambda: OPS.native_int4_pack(codes(2, 8, dtype=torch.int32), torch.ones(2, 1), None, 8),
        "codes: expected int8, got int32",
    ),
    ("codes dims", lambda: OPS.native_int4_pack(codes(8), torch.ones(2, 1), None, 8), r"codes: expected shape \[N, K\].*got \[8\]"),
    ("codes empty", lambda: OPS.native_int4_pack(codes(0, 8), torch.ones(0, 1), None, 8), r"at least 1, got \[0, 8\]"),
    ("group", lambda: OPS.native_int4_pack(codes(2, 8), torch.ones(2, 1), None, 0), "group: expected at least 1 .*got 0"),
    (
        "scales",
        lambda: OPS.native_int4_pack(codes(2, 8), torch.ones(2, 1), None, 4),
        r"scales: expected shape \[2, 2\], got \[2, 1\]",
    ),
    (
        "scales dtype",
        lambda: OPS.native_int8_pack(codes(2, 8), torch.ones(2, 2).double(), None, 4),
        "scales: expected float32 or bfloat16 or float16, got float64",
    ),
    (
        "zeros",
        lambda: OPS.native_int4_pack(codes(2, 8), torch.ones(2, 2), codes(2, 1), 4),
        r"zeros: expected shape \[2, 2\], got \[2, 1\]",
    ),
    (
        "zero range",
        lambda: OPS.native_int4_pack(codes(2, 8), torch.ones(2, 2), codes(2, 2) + 17, 4),
        r"zeros: expected 0 to 16, got 17 at \[0, 0\]",
    ),
    (
        "code high",
        lambda: OPS.native_int4_pack(codes(2, 8) + 8, torch.ones(2, 2), None, 4),
        r"codes: expected -8 to 7 \(without zeros\), got 8 at",
    ),
    ("code low", lambda: OPS.native_int4_pack(codes(2, 8) - 9, torch.ones(2, 2), None, 4), "codes: expected -8 to 7 .*got -9 at"),
    (
        "code sign",
        lambda: OPS.native_int4_pack(codes(2, 8) - 1, torch.ones(2, 2), codes(2, 2), 4),
        r"codes: expected 0 to 15 \(with zeros\), got -1 at",
    ),
    (
        "long group",
        lambda: OPS.native_int8_pack(codes(1, 65537), torch.ones(1, 1), None, 65537),
        "group: expected at most 65536 .*got 65537",
    ),
)


@pytest.mark.parametrize(("call", "message"), [case[1:] for case in PACK_CASES], ids=[case[0] for case in PACK_CASES])
def test_packing(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"qcompile::native_int\d_pack: .*{message}"):
        call()


def linear(
    x: Tensor | None = None,
    perm: Tensor | None = None,
    bias: Tensor | None = None,
    n: int = 16,
    k: int = 64,
    group: int = 32,
    level: int = -1,
) -> Tensor:
    packed = weight(16, 64, 32).pack()
    y: Tensor = OPS.native_int4_linear(torch.zeros(2, 64) if x is None else x, packed, perm, bias, n, k, group, level=level)
    return y


LINEAR_CASES: tuple[tuple[str, Callable[[], Tensor], str], ...] = (
    ("x dtype", lambda: linear(torch.zeros(2, 64, dtype=torch.int64)), "x: expected bfloat16 or float16 or float32, got int64"),
    ("x shape", lambda: linear(torch.zeros(2, 65)), r"x: expected shape \[..., 64\], got \[2, 65\]"),
    ("x scalar", lambda: linear(torch.zeros(())), r"x: expected shape \[..., 64\], got \[\]"),
    ("n", lambda: linear(n=17), "packed: expected a weight of n=17, k=64, group=32, got one of n=16, k=64, group=32"),
    ("group", lambda: linear(group=64), "group=64, got one of n=16, k=64, group=32"),
    ("k", lambda: linear(torch.zeros(2, 32), k=32), "k=32, group=32, got one of n=16, k=64"),
    ("perm dtype", lambda: linear(perm=torch.zeros(64, dtype=torch.int32)), "perm: expected int64, got int32"),
    ("perm shape", lambda: linear(perm=torch.zeros(63, dtype=torch.int64)), r"perm: expected shape \[64\], got \[63\]"),
    ("perm high", lambda: linear(perm=torch.full((64,), 64)), "perm: expected indices of 0 to 63, got 64 at 0"),
    ("perm low", lambda: linear(perm=torch.full((64,), -1)), "perm: expected indices of 0 to 63, got -1 at 0"),
    ("bias shape", lambda: linear(bias=torch.zeros(1, 16)), r"bias: expected shape \[16\], got \[1, 16\]"),
    ("bias dtype", lambda: linear(bias=torch.zeros(16).double()), "bias: expected float32 or bfloat16 or float16, got float64"),
    ("bias strides", lambda: linear(bias=torch.zeros(32)[::2]), "bias: expected a contiguous tensor"),
)


@pytest.mark.parametrize(("call", "message"), [case[1:] for case in LINEAR_CASES], ids=[case[0] for case in LINEAR_CASES])
def test_product(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"qcompile::native_int4_linear: .*{message}"):
        call()


def test_level_lists_what_exists() -> None:
    with pytest.raises(RuntimeError, match=r"level: expected -1 or an index of the levels .*generic\), got 99"):
        linear(level=99)


def rounded(
    rounding: int = 0,
    divisor: float = 127.0,
    low: float = -127.0,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    bits: int = 8,
) -> Tensor:
    packed = weight(16, 64, 32, bits=bits).pack()
    op = OPS.native_int8_linear if bits == 8 else OPS.native_int4_a8_linear
    y: Tensor = op(torch.ones(2, 64), packed, None, None, scale, zero, 16, 64, 32, rounding, divisor, low, False)
    return y


ROUNDED_CASES: tuple[tuple[str, Callable[[], Tensor], str], ...] = (
    ("rounding", lambda: rounded(4), "rounding: expected 0 .*3 .group., got 4"),
    ("by group", lambda: rounded(3), "rounding: expected 0, 1 or 2: only native_int4_a8_linear"),
    ("divisor", lambda: rounded(divisor=0.0), "divisor: expected 1 to 128, got 0"),
    ("divisor nan", lambda: rounded(divisor=float("nan")), "divisor: expected 1 to 128, got nan"),
    ("low", lambda: rounded(low=-128.5), "low: expected a whole number of -128 to 0, got -128.5"),
    ("no scale", lambda: rounded(2), "act_scale: expected the static scale .*got None"),
    ("scale", lambda: rounded(0, scale=torch.ones(1)), "act_scale: expected None .*got a tensor"),
    ("zero", lambda: rounded(1, zero=torch.ones(1)), "act_zero: expected None .*got a tensor"),
    ("scale shape", lambda: rounded(2, scale=torch.ones(2)), r"act_scale: expected one element, got shape \[2\]"),
    (
        "zero range",
        lambda: rounded(2, scale=torch.ones(1), zero=torch.tensor([200.0])),
        "act_zero: expected a whole number .*got 200",
    ),
    ("w4a8 asymmetric", lambda: rounded(1, bits=4), "rounding: expected symmetric activations"),
    ("w4a8 zero", lambda: rounded(2, scale=torch.ones(1), zero=torch.ones(1), bits=4), "act_zero: expected symmetric activations"),
)


@pytest.mark.parametrize(("call", "message"), [case[1:] for case in ROUNDED_CASES], ids=[case[0] for case in ROUNDED_CASES])
def test_rounding(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"qcompile::native_int\w+_linear: .*{message}"):
        call()
