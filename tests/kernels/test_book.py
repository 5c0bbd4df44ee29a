"""4-bit codes of a code book at every level of this machine: every kind of scale, edge shapes, extremes, act-order and bias."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.native_weights import (
    EVERY_DTYPE,
    EVERY_LEVEL,
    ROWS,
    TOLERANCE,
    activations,
    relative_error,
    require_kernels,
    tolerance,
)
from torch import Tensor

from qcompile.codebooks import CODE_BOOKS
from qcompile.targets.native_ops import packed_bytes

E2M1 = torch.tensor(CODE_BOOKS["e2m1"])
UNEVEN = torch.tensor(
    [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.723, 1]
)
BOOKS = {"e2m1": E2M1, "no bfloat16 numbers": UNEVEN}
SCALES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e8m0fnu)
# (N, K, group): N around the block of 16, K odd and around lines of 8, groups that divide K and some that do not.
SHAPES = ((1, 1, 1), (1, 7, 7), (15, 9, 9), (16, 128, 16), (17, 96, 32), (33, 257, 257), (40, 60, 20), (48, 100, 32), (5, 1100, 16))


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


@dataclass(frozen=True, slots=True)
class Weight:
    """codes [N, K], scales [N, G], outer [N, 1] or None."""

    codes: Tensor
    scales: Tensor
    outer: Tensor | None
    book: Tensor
    group: int

    def pack(self) -> Tensor:
        packed: Tensor = torch.ops.qcompile.native_book4_pack(self.codes, self.scales, self.outer, self.book, self.group)
        return packed

    def dense(self) -> Tensor:
        """W in float64."""
        scales = self.scales.double() if self.outer is None else self.scales.double() * self.outer.double()
        return self.book.double()[self.codes.long()] * scales.repeat_interleave(self.group, 1)[:, : self.codes.shape[1]]

    def product(self, x: Tensor, perm: Tensor | None = None, bias: Tensor | None = None, level: int = -1) -> Tensor:
        n, k = self.codes.shape
        y: Tensor = torch.ops.qcompile.native_book4_linear(x, self.pack(), perm, bias, n, k, self.group, level=level)
        return y


def weight(n: int, k: int, group: int, scales: torch.dtype = torch.float32, outer: bool = False, book: Tensor = E2M1) -> Weight:
    generator = torch.Generator().manual_seed(n + k)
    codes = torch.randint(0, 16, (n, k), generator=generator).to(torch.int8)
    steps = torch.rand(n, -(-k // group), generator=generator) * 0.9 + 0.1
    return Weight(codes, steps.to(scales), torch.rand(n, 1, generator=generator) + 0.5 if outer else None, book, group)


@pytest.mark.parametrize("scales", SCALES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("book", BOOKS)
@EVERY_DTYPE
@EVERY_LEVEL
def test_edge_shapes(level: int, dtype: torch.dtype, book: str, scales: torch.dtype) -> None:
    for n, k, group in SHAPES:
        w = weight(n, k, group, scales, outer=n % 2 == 0, book=BOOKS[book])
        for m in ROWS:
            x = activations(m, k, dtype)
            y, wanted = w.product(x, level=level), x.double() @ w.dense().t()
            terms = (x.double().abs() @ w.dense().abs().t()).norm() / k**0.5  # where they cancel
            assert y.dtype is dtype and y.shape == (m, n)
            size = max(float(wanted.norm()), float(terms), 1e-30)
            assert float((y.double() - wanted).norm()) <= tolerance(dtype, y.numel()) * size, (n, k, group, m)


@EVERY_LEVEL
def test_act_order_and_bias(level: int) -> None:
    w, x = weight(33, 96, 16, torch.float8_e4m3fn, outer=True), activations(6, 96, torch.bfloat16)
    perm, bias = torch.randperm(96), torch.randn(33)
    wanted = x.double()[:, perm] @ w.dense().t() + bias.double()
    assert relative_error(w.product(x, perm, bias, level), wanted) <= TOLERANCE[torch.bfloat16]


@EVERY_LEVEL
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e8m0fnu], ids=["e4m3", "e8m0"])
def test_every_byte_of_a_block_scale(level: int, kind: torch.dtype) -> None:
    """One row for each finite one, subnormal and negative ones too; float32 holds every product exactly."""
    known = [byte for byte in range(256) if byte not in {127, 255}] if kind is torch.float8_e4m3fn else range(255)
    scales = torch.tensor(list(known), dtype=torch.uint8).view(kind)[:, None]
    codes = torch.arange(16, dtype=torch.int8).expand(len(scales), 16).contiguous()
    w = Weight(codes, scales, None, E2M1, 16)
    y = w.product(torch.eye(16), level=level).t()
    fits = w.dense().abs() <= torch.finfo(torch.float32).max
    assert torch.equal(y.double()[fits], w.dense()[fits])


@EVERY_LEVEL
def test_nan_and_infinity_stay(level: int) -> None:
    w = weight(17, 64, 16, torch.float8_e4m3fn, outer=True)
    x = torch.ones(4, 64)
    x[1, 5], x[2, 9] = float("nan"), float("inf")
    for dtype in TOLERANCE:
        y, wanted = w.product(x.to(dtype), level=level), x.double() @ w.dense().t()
        assert bool(y[[0, 3]].isfinite().all()) and bool(y[1].isnan().all())
        assert torch.equal(y[2].isfinite(), wanted[2].isfinite())


@pytest.mark.parametrize("scales", SCALES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("outer", [False, True], ids=["one level", "two levels"])
def test_the_size_is_the_fake_one(scales: torch.dtype, outer: bool) -> None:
    for n, k, group in SHAPES:
        expected = packed_bytes(4, n, k, group, scales.itemsize, book=True, outer=outer)
        assert weight(n, k, group, scales, outer).pack().numel() == expected


def test_bits_for_each_weight() -> None:
    """What the checkpoint takes: 4.5 for NVFP4, 4.25 for MXFP4, and little for the tensor as a whole."""
    for scales, group, outer, bits in ((torch.float8_e4m3fn, 16, True, 4.5), (torch.float8_e8m0fnu, 32, False, 4.25)):
        packed = weight(1024, 1024, group, scales, outer).pack()
        assert packed.numel() * 8 / 1024**2 <= bits * 1.02


GOOD = weight(32, 64, 16)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a code of 16": ({"codes": GOOD.codes + 1}, "codes: expected 0 to 15 .of a code book., got 16"),
    "float8_e5m2": ({"scales": GOOD.scales.to(torch.float8_e5m2)}, "scales: expected float32 or"),
    "a short book": ({"book": E2M1[:8]}, r"book: expected shape \[16\], got \[8\]"),
    "a book of float64": ({"book": E2M1.double()}, "book: expected float32, got float64"),
    "too few scales": ({"scales": GOOD.scales[:, :3]}, r"scales: expected shape \[32, 4\]"),
    "outer scales in a row": ({"outer": torch.ones(1, 32)}, r"outer: expected shape \[32, 1\], got \[1, 32\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_packed(name: str) -> None:
    changes, error = BAD[name]
    with pytest.raises(RuntimeError, match=error):
        replace(GOOD, **changes).pack()


def test_what_was_packed_otherwise() -> None:
    integers = torch.ops.qcompile.native_int4_pack(GOOD.codes - 8, GOOD.scales, None, 16)
    x = torch.ones(1, 64)
    with pytest.raises(RuntimeError, match="expected a tensor of native_book4_pack, but it holds integer codes"):
        torch.ops.qcompile.native_book4_linear(x, integers, None, None, 32, 64, 16)
    with pytest.raises(RuntimeError, match="expected a tensor of native_int4_pack, but it holds codes of a code book"):
        torch.ops.qcompile.native_int4_linear(x, GOOD.pack(), None, None, 32, 64, 16)
