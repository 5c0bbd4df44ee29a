"""Random quantized weights for the native kernels, and what their products are in float64."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from qcompile.targets.native_ops import levels, missing_ops

LEVELS = levels()
EVERY_LEVEL = pytest.mark.parametrize("level", range(max(len(LEVELS), 1)), ids=LEVELS or ("none",))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=("bf16", "fp16", "f32"))
# Relative L2 error of a product of unrounded x: rounding the output, or float32 sums.
TOLERANCE = {torch.bfloat16: 3e-3, torch.float16: 4e-4, torch.float32: 1e-6}
# Row counts around the panel sizes of the levels (2, 5 and 12 rows, 6 of float16 in pairs) and what users ask for.
ROWS = (0, 1, 2, 3, 4, 5, 7, 8, 12, 13, 15, 16, 17, 33)
# Half a unit in the last place at worst, which a handful of outputs may come close to.
WORST = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 1e-6}


def require_kernels() -> None:
    """Skip where the C++ kernels were not built or do not load."""
    reason = missing_ops()
    if reason is not None:
        pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class Weight:
    """codes [N, K], scales [N, G], zeros [N, G] or None, with G = ceil(K / group)."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    group: int
    bits: int

    @property
    def n(self) -> int:
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        return self.codes.shape[1]

    def pack(self) -> Tensor:
        op = torch.ops.qcompile.native_int4_pack if self.bits == 4 else torch.ops.qcompile.native_int8_pack
        packed: Tensor = op(self.codes, self.scales, self.zeros, self.group)
        return packed

    def dense(self) -> Tensor:
        """W in float64."""
        shifted = self.codes.double()
        if self.zeros is not None:
            shifted = shifted - self._along_k(self.zeros)
        return shifted * self._along_k(self.scales)

    def _along_k(self, values: Tensor) -> Tensor:
        return values.double().repeat_interleave(self.group, 1)[:, : self.k]


def weight(
    n: int, k: int, group: int, *, bits: int = 4, zeros: bool = False, seed: int = 0, scales: torch.dtype = torch.float32
) -> Weight:
    """Codes over their whole range; zero points over theirs (4 bit: 0 to 16)."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-k // group)
    low = 0 if zeros and bits == 4 else -(1 << (bits - 1))
    codes = torch.randint(low, low + (1 << bits), (n, k), generator=generator).to(torch.int8)
    points = (
        torch.randint(0, 17, (n, groups), generator=generator)
        if bits == 4
        else torch.randint(-128, 128, (n, groups), generator=generator)
    )
    steps = (torch.rand(n, groups, generator=generator) * 0.02 + 0.001).to(scales)
    return Weight(codes, steps, points.to(torch.int8) if zeros else None, group, bits)


def activations(m: int, k: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """Normal numbers with rows of different size and, as in real models, a few large columns."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator) * (1.0 + torch.arange(m)[:, None] % 3)
    x[:, :: max(1, k // 3)] *= 8.0
    return x.to(dtype)


def expected(x: Tensor, w: Weight, perm: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """x[:, perm] @ W.T + bias in float64."""
    wide = x.double() if perm is None else x.double()[..., perm]
    y = wide @ w.dense().T
    return y if bias is None else y + bias.double()


def relative_error(y: Tensor, wanted: Tensor) -> float:
    """L2 norm of the difference over that of `wanted`; 0 for empty tensors."""
    if wanted.numel() == 0:
        return 0.0
    assert bool(torch.isfinite(y).all())
    return float((y.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


@dataclass(frozen=True, slots=True)
class Reference:
    """A product in float64, and how large it and its terms are: what the kernels of every level are compared with."""

    wanted: Tensor
    size: float


def reference(x: Tensor, w: Weight, bias: Tensor | None = None) -> Reference:
    """x @ W.T + bias; its size is its own norm, or that of its terms where they cancel to less.

    Kernels take codes times x and zero points times x apart, so a term is as large as both together, even where they are equal.
    """
    wanted = expected(x, w, bias=bias)
    apart = Weight(w.codes.double().abs(), w.scales, None if w.zeros is None else -w.zeros.double().abs(), w.group, w.bits)
    terms = (x.double().abs() @ apart.dense().T).norm() / max(w.k, 1) ** 0.5
    return Reference(wanted, max(float(wanted.norm()), float(terms), 1e-30))


def weighted_error(y: Tensor, x: Tensor, w: Weight, bias: Tensor | None = None) -> float:
    """The difference from x @ W.T + bias relative to its size."""
    return error_from(y, reference(x, w, bias))


def error_from(y: Tensor, right: Reference) -> float:
    """The difference from a reference relative to its size."""
    wanted = right.wanted
    if wanted.numel() == 0:
        return 0.0
    # The least numbers of float16 are 2^-24 apart.
    unavoidable = 2.0**-25 * wanted.numel() ** 0.5 if y.dtype is torch.float16 else 0.0
    difference = max(0.0, float((y.double() - wanted).norm()) - unavoidable)
    assert bool(torch.isfinite(y).all())
    return difference / right.size


def tolerance(dtype: torch.dtype, outputs: int) -> float:
    return TOLERANCE[dtype] if outputs >= 64 else WORST[dtype]
