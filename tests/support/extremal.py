"""Numbers at the edge for x and for the weight, and what a product of them may be off, written as numbers.

With t = sum |x'| (|q| + |z| + o) |s| over K (kernels take codes and zero points apart, and codes of 4 bits as 0 .. 15: o is 8 for
them) and t0 the same without s, both in float64, an output y of a dtype with unit u (2^-8, 2^-11, 1e-6 for sums in float32) and least
normal number d must be

- not finite, where x' q s - x' z s is not, summed in float64;
- otherwise |y - exact| <= 2 u t + d (1 + sum |w|), as numbers below d may count as zero;
- of any value, but not finite or of the right sign, where t is more than 0.99 of the dtype's largest number, t0 more than 1e38 or
  some x' more than 3.3e38: numbers on the way are float32, sums of codes are made before they are scaled, and a step of x times its
  code may be more than float32 holds.
"""

from dataclasses import dataclass

import torch
from support.native_weights import WORST
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.meaning import Operands

ROWS = (
    "NaN",
    "infinity",
    "minus infinity",
    "both infinities",
    "zeros",
    "minus zeros",
    "least numbers",
    "least normal numbers",
    "one large number",
    "large numbers of both signs",
    "the largest number",
    "equal numbers",
    "random numbers",
)
NOT_FINITE = 4  # so many of them, at the front


def tokens(k: int, dtype: torch.dtype) -> Tensor:
    """x [13, K], a row for each of ROWS."""
    info = torch.finfo(dtype)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(len(ROWS), k, generator=generator, dtype=torch.float64)
    large = 1e30 if dtype is not torch.float16 else 512.0
    for row, number in enumerate((torch.nan, torch.inf, -torch.inf, torch.inf)):
        x[row, (5 * row + 1) % k] = number
    x[3, -1] = -torch.inf
    x[4], x[5] = 0.0, -0.0
    x[6] = float(info.smallest_normal) / 64 * (1 - torch.arange(k) % 2 * 2)
    x[7] = float(info.smallest_normal)
    x[8, 0] = large
    x[9] = large * (1 - torch.arange(k) % 2 * 2)
    x[10, 0] = float(info.max)
    x[11] = 1.5
    return x.to(dtype)


@dataclass(frozen=True, slots=True)
class Extreme:
    """A weight, and the site's facts that follow from it."""

    name: str
    operands: Operands
    bits: int
    group: int


def weights(n: int, k: int, group: int, bits: int, scale_dtype: torch.dtype) -> list[Extreme]:
    """Codes and zero points at both ends, scales of zero, tiny, huge and negative, with and without zero points."""
    generator = torch.Generator().manual_seed(n + k + bits)
    half, groups = 1 << (bits - 1), k // group
    random = torch.randint(-half, half, (n, k), generator=generator).to(torch.int8)
    steps = (torch.rand(n, groups, generator=generator) * 0.02 + 0.001).to(scale_dtype)
    tiny, huge = (2.0**-20, 64.0) if scale_dtype is torch.float16 else (1e-20, 1e6)
    made = {
        "random": Operands(random, steps),
        "least codes": Operands(torch.full_like(random, -half), steps),
        "largest codes": Operands(torch.full_like(random, half - 1), steps),
        "codes of zero": Operands(torch.zeros_like(random), steps),
        "scales of zero": Operands(random, torch.zeros_like(steps)),
        "tiny scales": Operands(random, torch.full_like(steps, tiny)),
        "huge scales": Operands(random, torch.full_like(steps, huge)),
        "negative scales": Operands(random, -steps),
    }
    unsigned = random if bits == 8 else random + half
    for zero in (-128, 127) if bits == 8 else (0, 15, 16):
        zeros = torch.full((n, groups), zero, dtype=torch.int8)
        made[f"zero points of {zero}"] = Operands(unsigned, steps, zeros)
        same = min(zero, (1 << bits) - 1)
        made[f"codes equal to zero points of {same}"] = Operands(torch.full_like(random, same), steps, torch.full_like(zeros, same))
    return [Extreme(name, operands, bits, group) for name, operands in made.items()]


def rounded(x: Tensor, rounding: ActivationQuant, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x', |x'| or the sum of the parts it is taken in) in float64, with the codes and the step of arithmetic in float32."""
    if rounding.is_none:
        return x.double(), x.double().abs()
    codes, step, zero = rounding.codes(x.float(), scale)
    offset = torch.zeros(1) if zero is None else zero.double()
    return (codes.double() - offset) * step.double(), (codes.double().abs() + offset.abs()) * step.double()


def objections(y: Tensor, wanted: tuple[Tensor, Tensor], weight: Extreme) -> list[str]:
    """Rows of what `rounded` gave for [13, K] for which y [13, N] breaks a rule of this module."""
    x, sizes_of_x = wanted
    q, s, z, *_ = weight.operands
    steps = s.double().repeat_interleave(weight.group, 1)
    zeros = torch.zeros_like(steps) if z is None else z.double().repeat_interleave(weight.group, 1)
    exact = x @ ((q.double() - zeros) * steps).t()
    sizes = q.double().abs() + zeros.abs() + (8 if weight.bits == 4 else 0)
    sums, terms = sizes_of_x @ sizes.t(), sizes_of_x @ (sizes * steps.abs()).t()
    info = torch.finfo(y.dtype)
    dense = (sizes * steps.abs()).sum(1)
    allowed = 2 * WORST[y.dtype] * terms + float(info.smallest_normal) * (1 + dense)
    near = (y.double() - exact).abs() <= allowed
    beyond = (terms > 0.99 * float(info.max)) | (sums > 1e38) | (x.abs().amax(1, keepdim=True) > 3.3e38)
    right = torch.where(exact.isfinite(), near, ~y.isfinite())
    right |= exact.isfinite() & beyond & (~y.isfinite() | (y.double().sign() == exact.sign()))
    wrong = ~right
    return [
        f"{weight.name}, {ROWS[row]}: {float(y[row, column]):.4g} instead of {float(exact[row, column]):.4g}"
        for row in range(len(ROWS))
        if bool(wrong[row].any())
        for column in [int(wrong[row].nonzero()[0])]
    ]
