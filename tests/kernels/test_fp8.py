"""Weights of numbers of 8 bits at every level of this machine: both kinds, every scale, shared scales, edge shapes, extremes."""

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

from qcompile.targets.native_ops import packed_bytes

E4M3, E5M2, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu
KINDS = pytest.mark.parametrize("kind", [E4M3, E5M2], ids=["e4m3", "e5m2"])
SCALES = (torch.float32, torch.bfloat16, torch.float16, E4M3, E8M0)
# (N, K, group): N around the block of 16, K odd and around lines of 4, groups that divide K and some that do not.
SHAPES = ((1, 1, 1), (1, 7, 7), (15, 9, 9), (16, 128, 16), (17, 96, 32), (33, 257, 257), (40, 60, 20), (48, 100, 32), (5, 1100, 16))


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


@dataclass(frozen=True, slots=True)
class Weight:
    """codes float8 [N, K], scales [N, G] or [ceil(N / 16), G], outer [N, 1] or None."""

    codes: Tensor
    scales: Tensor
    outer: Tensor | None
    group: int

    def pack(self) -> Tensor:
        packed: Tensor = torch.ops.qcompile.native_fp8_pack(self.codes, self.scales, self.outer, self.group)
        return packed

    def dense(self) -> Tensor:
        """W in float64."""
        n, k = self.codes.shape
        scales = self.scales.double()
        scales = scales if len(scales) == n else scales.repeat_interleave(16, 0)[:n]
        scales = scales if self.outer is None else scales * self.outer.double()
        return self.codes.double() * scales.repeat_interleave(self.group, 1)[:, :k]

    def product(self, x: Tensor, perm: Tensor | None = None, bias: Tensor | None = None, level: int = -1) -> Tensor:
        n, k = self.codes.shape
        e5m2 = self.codes.dtype is E5M2
        y: Tensor = torch.ops.qcompile.native_fp8_linear(x, self.pack(), perm, bias, n, k, self.group, e5m2, level=level)
        return y


def weight(
    n: int,
    k: int,
    group: int,
    kind: torch.dtype = E4M3,
    scales: torch.dtype = torch.float32,
    outer: bool = False,
    shared: bool = False,
) -> Weight:
    """Every finite bit pattern of E4M3; E5M2 has larger ones, which leave float16."""
    generator = torch.Generator().manual_seed(n + k)
    codes = torch.randint(0, 256, (n, k), generator=generator).to(torch.uint8)
    codes[codes & 0x7F >= (0x7F if kind is E4M3 else 0x60)] = 0x31
    steps = torch.rand(-(-n // 16) if shared else n, -(-k // group), generator=generator) * 0.9 + 0.1
    return Weight(codes.view(kind), steps.to(scales), torch.rand(n, 1, generator=generator) + 0.5 if outer else None, group)


@KINDS
@pytest.mark.parametrize("shared", [False, True], ids=["scales of each output", "shared scales"])
@pytest.mark.parametrize("scales", SCALES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@EVERY_DTYPE
@EVERY_LEVEL
def test_edge_shapes(level: int, dtype: torch.dtype, scales: torch.dtype, shared: bool, kind: torch.dtype) -> None:
    for n, k, group in SHAPES:
        w = weight(n, k, group, kind, scales, outer=n % 2 == 0, shared=shared)
        for m in ROWS:
            x = activations(m, k, dtype) / (2.0**12 if dtype is torch.float16 else 1.0)
            y, wanted = w.product(x, level=level), x.double() @ w.dense().t()
            terms = (x.double().abs() @ w.dense().abs().t()).norm() / k**0.5  # where they cancel
            assert y.dtype is dtype and y.shape == (m, n)
            size = max(float(wanted.norm()), float(terms), 1e-30)
            least = 2.0**-25 * y.numel() ** 0.5 if dtype is torch.float16 else 0.0
            assert float((y.double() - wanted).norm()) <= tolerance(dtype, y.numel()) * size + least, (n, k, group, m)


@KINDS
@EVERY_LEVEL
def test_every_number(level: int, kind: torch.dtype) -> None:
    """All finite ones, subnormal and negative ones too: float32 x of one 1 gives them back exactly."""
    codes = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    codes[~codes.view(kind).float().isfinite()] = 0
    w = Weight(codes.view(kind), torch.ones(16, 1), None, 16)
    for dtype in (torch.float32, torch.bfloat16):
        y = w.product(torch.eye(16, dtype=dtype), level=level).t()
        assert torch.equal(y.double(), w.dense())


@EVERY_LEVEL
def test_act_order_and_bias(level: int) -> None:
    w, x = weight(33, 96, 32, outer=True), activations(6, 96, torch.bfloat16)
    perm, bias = torch.randperm(96), torch.randn(33)
    wanted = x.double()[:, perm] @ w.dense().t() + bias.double()
    assert relative_error(w.product(x, perm, bias, level), wanted) <= TOLERANCE[torch.bfloat16]


@KINDS
@EVERY_LEVEL
def test_nan_and_infinity_stay(level: int, kind: torch.dtype) -> None:
    w = weight(17, 64, 16, kind)
    x = torch.ones(4, 64)
    x[1, 5], x[2, 9] = float("nan"), float("inf")
    for dtype in TOLERANCE:
        y, wanted = w.product(x.to(dtype), level=level), x.double() @ w.dense().t()
        finite = wanted.to(dtype).isfinite()
        assert torch.equal(y.isfinite(), finite)
        assert bool(y[1].isnan().all())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scales", SCALES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("outer", [False, True], ids=["one level", "two levels"])
def test_the_size_is_the_fake_one(scales: torch.dtype, outer: bool, shared: bool) -> None:
    for n, k, group in SHAPES:
        given = weight(n, k, group, scales=scales, outer=outer, shared=shared)
        fewer = len(given.scales) != n
        expected = packed_bytes(8, n, k, group, scales.itemsize, outer=outer, sums=False, shared=fewer)
        assert given.pack().numel() == expected


def test_bits_for_each_weight() -> None:
    """What the checkpoint takes: 8 and its scales."""
    for group, scales, shared, bits in (
        (128, torch.float32, True, 8.002),
        (1024, torch.bfloat16, False, 8.016),
        (32, E8M0, False, 8.25),
    ):
        assert weight(1024, 1024, group, scales=scales, shared=shared).pack().numel() * 8 / 1024**2 <= bits * 1.02


GOOD = weight(32, 64, 16)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "bytes": ({"codes": GOOD.codes.view(torch.int8)}, "codes: expected float8_e4m3fn or float8_e5m2, got int8"),
    "NaN": (
        {"codes": torch.full((32, 64), float("nan")).to(E4M3)},
        r"codes: expected finite numbers, got NaN or infinity at \[0, 0\]",
    ),
    "infinity": ({"codes": torch.full((32, 64), float("inf")).to(E5M2)}, "codes: expected finite numbers"),
    "scales in e5m2": ({"scales": GOOD.scales.to(E5M2)}, "scales: expected float32 or"),
    "too few scales": ({"scales": GOOD.scales[:, :3]}, r"scales: expected shape \[32, 4\]"),
    "scales of 8 outputs": ({"scales": GOOD.scales[::8]}, r"scales: expected shape \[32, 4\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_packed(name: str) -> None:
    changes, error = BAD[name]
    with pytest.raises(RuntimeError, match=error):
        replace(GOOD, **changes).pack()


def test_what_was_packed_otherwise() -> None:
    x, packed = torch.ones(1, 64), GOOD.pack()
    integers = torch.ops.qcompile.native_int8_pack(GOOD.codes.view(torch.int8), GOOD.scales, None, 16)
    with pytest.raises(RuntimeError, match="expected a tensor of native_fp8_pack, but it holds integer codes"):
        torch.ops.qcompile.native_fp8_linear(x, integers, None, None, 32, 64, 16)
    with pytest.raises(RuntimeError, match="expected a tensor of native_fp8_pack, but it holds numbers in E4M3"):
        torch.ops.qcompile.native_fp8_linear(x, packed, None, None, 32, 64, 16, True)
    with pytest.raises(RuntimeError, match="expected a tensor of native_int8_pack, but it holds numbers in E4M3"):
        torch.ops.qcompile.native_int8_a16_linear(x, packed, None, None, 32, 64, 16)
