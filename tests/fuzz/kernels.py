"""Random weights, packed for every kernel row that runs here and takes them, and run on ordinary and extreme x against float64.

The reference is the formula of qcompile.meaning in float64, with x rounded as the row says it rounds. Per result, with
A = sum |x| * ((|code| + |zero| + 2^bits) * |scale| + |offset|) (kernels keep signed codes as unsigned ones of 4 or 8 bits, and take the difference
off again):

    sums in float32                (K + 8) * 2^-23 * A, and 2^-126 for each factor that may be flushed to zero
    scales in 16 bits              2 * 2^-p * A, p the significant bits of x or of the scales: rows of torch and zentorch
    the result's own rounding      2^-p * |y|, and the dtype's smallest step
    rounded x                      a step * |w| where the quotient is as good as halfway between two codes
    int4_a8's own groups           half a step * |w|

With rows of native, outputs whose weights are all zero are exactly zero, or the bias. Where sums of x * code overflow float32, nothing is compared:
such x (above 1e35) overflow in kernels that scale a group's sum and not in others. Where the formula is not finite, neither is the result; the
other rows of the same call are as good as ever.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from unittest.mock import patch

import torch
from torch import Tensor

import qcompile
from fuzz import Outcome, contents
from fuzz.bounds import SPACING, UNIT
from fuzz.levels import with_levels
from qcompile.activations import NO_ACTIVATION_QUANT, ActivationQuant
from qcompile.codebooks import CODE_BOOKS, NUMBERS
from qcompile.hardware import platform
from qcompile.kernel import Site, site_of
from qcompile.meaning import QuantizedWeight, group_count, in_groups, values_of
from qcompile.targets.native import a8_group
from qcompile.targets.native_ops import levels
from qcompile.targets.registry import kernels

OPERATORS = (
    "native_int4_linear", "native_book4_linear", "native_fp8_linear", "native_planes_linear", "native_int8_a16_linear", 
    "native_int8_linear", "native_int4_a8_linear",
)  # fmt: skip
ROUNDINGS = (
    NO_ACTIVATION_QUANT,
    ActivationQuant(kind="token"),
    ActivationQuant(kind="token", divisor=127.0, low=-127),
    ActivationQuant(kind="token_asymmetric"),
    ActivationQuant(kind="tensor"),
)
XS = 12  # how many inputs each packed weight is run on
SUM = 2.0**-23
HALFWAY = 2.0**-18  # relative; quotients are made in float32, as x / s or as x * (1 / s)


@dataclass(frozen=True, slots=True)
class Problem:
    """A weight, and how it is used. float64 [N, K], columns as x has them: dense, the weight; size, what A is made of; unscaled, A's codes."""

    weight: QuantizedWeight
    dtype: torch.dtype
    bias: Tensor | None
    activation: ActivationQuant
    act_scale: Tensor | None
    act_zero: Tensor | None
    dense: Tensor
    size: Tensor
    unscaled: Tensor

    def site(self) -> Site:
        site = site_of(self.weight.normalized(), self.dtype, self.bias, self.activation)
        return replace(site, allow_a8=self.activation.is_none)

    def describe(self) -> str:
        w = self.weight
        parts = [f"N={w.n} K={w.k} bits={w.bits} group={w.group} {str(self.dtype)[6:]} scales {str(w.scales.dtype)[6:]}"]
        parts += (
            [f"|scales| {float(w.scales.float().abs().min()):.3g} .. {float(w.scales.float().abs().max()):.3g}"]
            if w.scales.numel()
            else []
        )
        parts += ["zero points"] if w.zeros is not None else []
        parts += [f"offsets {str(w.offsets.dtype)[6:]}"] if w.offsets is not None else []
        parts += [f"an outer scale for {w.outer_group} values"] if w.outer_group else []
        parts += ["order of K"] if w.perm is not None else []
        parts += [f"bias {str(self.bias.dtype)[6:]}"] if self.bias is not None else []
        parts += [w.codebook] if w.codebook else []
        parts += [f"outer {float(w.outer.abs().min()):.3g} .. {float(w.outer.abs().max()):.3g}"] if w.outer is not None else []
        return ", ".join([*parts, f"x rounded: {self.activation.spec}"])


def case(seed: int, folder: Path | None = None) -> Outcome:
    """One weight of this seed, with every row that takes it and XS inputs each; counts each (weight, row, input)."""
    del folder
    rng = Random(seed)
    problem = random_problem(rng)
    inputs = [random_x(rng, problem) for _ in range(XS)]
    tried = 0
    bad: list[str] = []
    for name, run, rounding in runs(problem):
        for words, x in inputs:
            tried += 1
            with torch.no_grad():
                y = run(x)
            wrong = compare(problem, name, rounding, x, y)
            if wrong:
                bad.append(f"{name}, x {str(x.dtype)[6:]} {list(x.shape)} {words}: {wrong}")
    if bad:
        return Outcome("wrong", "\n".join([problem.describe(), *bad[:6], f"{len(bad)} of {tried}"]), max(tried, 1))
    return Outcome("right" if tried else "declined", "", max(tried, 1))


def random_problem(rng: Random) -> Problem:
    bits = rng.choice((4, 4, 4, 8, 8, 1, 2, 3, 5, 6, 7))
    n = rng.choice((1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 96))
    k = rng.choice((1, 2, 8, 16, 24, 32, 40, 63, 64, 65, 96, 128, 160, 192, 256, 320))
    even = rng.random() < 0.8  # else the last group is short
    sizes = [size for size in range(1, k + 1) if size in (1, 2, 3, 5, 8) or size >= 16 or size == k]
    group = rng.choice([size for size in sizes if not even or k % size == 0])
    group = k if rng.random() < 0.3 else group
    groups = group_count(k, group)
    codebook = "e2m1" if bits == 4 and rng.random() < 0.1 else ""
    codebook = rng.choice(list(NUMBERS)) if bits == 8 and rng.random() < 0.3 else codebook
    zeros = None
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    if codebook in CODE_BOOKS:
        low, high = 0, 16
    elif not codebook and rng.random() < 0.4:
        low, high = (low, high) if bits == 8 else (0, 1 << bits)
        zeros = contents.codes(rng, (n, groups), low, min(high + 1, 128), torch.int8)
    scale_dtype = rng.choice(contents.FLOATS)
    kind = rng.choice([kind for kind in contents.SCALES if not kind.startswith("one ")]) if rng.random() < 0.6 else "usual"
    scales, _ = contents.scales(rng, (n, groups), scale_dtype, kind)
    outer = contents.scales(rng, (n, 1), torch.float32, kind)[0] if codebook and rng.random() < 0.4 else None
    if codebook and rng.random() < 0.5:
        scales = contents.block_scales(rng, (n, groups))
    perm = torch.randperm(k, generator=contents.generator(rng)) if rng.random() < 0.2 else None
    codes = contents.codes(rng, (n, k), low, high, torch.int8)
    if codebook in NUMBERS:
        codes = contents.numbers(rng, (n, k), codebook)
    elif rng.random() < 0.05:
        codes = codes * 0 if zeros is None else zeros.repeat_interleave(group, 1)[:, :k]
        codes = codes.clamp(max=high - 1)
    weight = QuantizedWeight(codes, scales, zeros, bits, group, perm, codebook, outer)
    if not codebook and rng.random() < 0.35:
        weight = with_levels(rng, weight)
    dtype = rng.choice(contents.FLOATS)
    bias = (
        contents.rows(rng, (n,), rng.choice((dtype, torch.float32)), rng.choice((1.0, 1e-3, 1e3))) if rng.random() < 0.3 else None
    )
    activation = rng.choice(ROUNDINGS) if rng.random() < 0.5 else NO_ACTIVATION_QUANT
    act_scale = torch.tensor([rng.choice((0.01, 0.05, 1.0))]) if activation.kind == "tensor" else None
    act_zero = torch.tensor([float(rng.randrange(-20, 20))]) if act_scale is not None and rng.random() < 0.3 else None
    return Problem(weight, dtype, bias, activation, act_scale, act_zero, *_dense(weight))


def _dense(weight: QuantizedWeight) -> tuple[Tensor, Tensor, Tensor]:
    value = values_of(weight.codes, weight.codebook).double()
    column = torch.arange(weight.k)
    g, h = column // weight.group, column // weight.outer_group if weight.outer_group else column * 0
    scale, offset = weight.scales.double()[:, g], torch.zeros_like(value)
    # With two levels, sums are multiplied with the first before the second makes them smaller again.
    inner = 1.0 if weight.outer is None else scale.abs().nan_to_num(0.0).clamp(min=1.0)
    scale = scale if weight.outer is None else scale * weight.outer.double()[:, h]
    if weight.offsets is not None:
        offset = weight.offsets.double()[:, g]
        offset = offset if weight.outer_offset is None else offset * weight.outer_offset.double()[:, h]
    points = None if weight.zeros is None else weight.zeros.double().repeat_interleave(weight.group, 1)[:, : weight.k]
    zero = torch.zeros_like(scale) if points is None else points
    unscaled = value.abs() + zero.abs() + max(1 << weight.bits, 16)
    parts = (value - zero) * scale + offset, unscaled * scale.abs() + offset.abs(), (unscaled + 256) * inner
    if weight.perm is None:
        return parts
    inverse = torch.argsort(weight.perm)
    dense, size, unscaled = (part[:, inverse] for part in parts)
    return dense, size, unscaled


def random_x(rng: Random, problem: Problem) -> tuple[str, Tensor]:
    """(in words, x): of many sizes, layouts and contents."""
    k, dtype = problem.weight.k, problem.dtype
    m = rng.choice((0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 32, 33, 64, 65))
    kind = contents.pick(rng, KINDS)
    x = contents.rows(rng, (m, k), torch.float32)
    row, column = rng.randrange(max(m, 1)), rng.randrange(k)
    info = torch.finfo(dtype)
    if kind == "rows of many sizes":
        x = x * torch.exp(torch.randn(m, 1, generator=contents.generator(rng)) * 3)
    elif kind == "one-hot":
        x = torch.eye(k).repeat(m // k + 1, 1)[:m]
    elif kind == "large":
        x = x * min(1e4, float(info.max) / 1e3)
    elif kind == "huge":
        x = x * (float(info.max) / 1e2)
    elif kind == "tiny":
        x = x * max(1e-30, float(info.tiny) * 4)
    elif kind == "subnormal":
        x = x * float(info.tiny) / 8
    elif kind == "a zero row" and m:
        x[row] = 0
    elif kind == "all zero":
        x = x * 0
    elif kind == "outlier" and m:
        x[row, column] = float(info.max) / 64
    x = x.to(dtype)
    special = {
        "a NaN": float("nan"),
        "an infinity": float("inf"),
        "a negative infinity": float("-inf"),
        "the largest": float(info.max),
    }
    if kind in special and m:
        x[row, column] = special[kind]
    return _laid_out(rng, x, kind)


KINDS = {
    "normal": 6,
    "rows of many sizes": 2,
    "one-hot": 3,
    "large": 1,
    "huge": 1,
    "tiny": 1,
    "subnormal": 1,
    "a zero row": 1,
    "all zero": 1,
    "outlier": 1,
    "a NaN": 2,
    "an infinity": 1,
    "a negative infinity": 1,
    "the largest": 1,
}


def _laid_out(rng: Random, x: Tensor, kind: str) -> tuple[str, Tensor]:
    m, k = x.shape
    way = rng.choice(("plain", "plain", "plain", "columns", "every second", "three dimensions", "vector", "offset"))
    if way == "columns":
        x = x.t().contiguous().t()
    elif way == "every second":
        x = torch.stack((x, x), 1).flatten(0, 1)[::2]
    elif way == "three dimensions" and m % 2 == 0:
        x = x.view(2, m // 2, k)
    elif way == "vector" and m == 1:
        x = x[0]
    elif way == "offset":
        x = torch.cat((x.flatten()[:1], x.flatten()))[1:].view(m, k) if m else x
    return f"{kind}, {way}", x


Run = Callable[[Tensor], Tensor]


def runs(problem: Problem) -> Iterator[tuple[str, Run, ActivationQuant]]:
    """(row and level, what computes it, how it rounds x) for every row that takes the problem."""
    site = problem.site()
    for row in kernels().values():
        if row.reasons(site, platform()):
            continue
        packed = qcompile.pack_linear(
            problem.weight,
            row.name,
            problem.dtype,
            problem.bias,
            activation=problem.activation,
            act_scale=problem.act_scale,
            act_zero=problem.act_zero,
            allow_a8=problem.activation.is_none,
        )
        yield row.name, packed, row.rounding(site)
        if row.target == "native":
            for number, level in enumerate(levels()[1:], 1):
                yield f"{row.name} at {level}", partial(_at_level, number, packed), row.rounding(site)


def _at_level(number: int, run: Run, x: Tensor) -> Tensor:
    with _level(number):
        return run(x)


@contextmanager
def _level(number: int) -> Generator[None]:
    with ExitStack() as patches:
        for name in OPERATORS:
            packet = getattr(torch.ops.qcompile, name)
            patches.enter_context(patch.object(packet, "default", partial(packet.default, level=number)))
        yield


def compare(problem: Problem, name: str, rounding: ActivationQuant, x: Tensor, y: Tensor) -> str:
    """'' if y is what the formula gives for x, within the bound."""
    n, k = problem.weight.n, problem.weight.k
    if y.dtype is not x.dtype or tuple(y.shape) != (*x.shape[:-1], n):
        return f"gave {y.dtype} {list(y.shape)}"
    if y.numel() == 0:
        return ""
    flat, got = x.reshape(-1, k), y.reshape(-1, n).double()
    taken = _rounded(problem, name, rounding, flat)
    bias = torch.zeros(n, dtype=torch.float64) if problem.bias is None else problem.bias.double()
    want = taken.values @ problem.dense.t() + bias
    finite = taken.values.isfinite().all(-1, keepdim=True).expand(want.shape)
    size = taken.sizes @ problem.size.t()
    unit = UNIT[x.dtype]
    narrow = 0.0 if name.startswith("native") else 2 * max(unit, UNIT.get(problem.weight.scales.dtype, 0.0))
    error = (narrow + (k + 8) * SUM) * size + taken.slack @ problem.dense.abs().t() + unit * (want.abs() + bias.abs()) * 1.01
    error = error + SPACING[x.dtype] + SPACING[torch.float32] * (k + taken.sizes.sum(-1, keepdim=True) + problem.size.sum(-1))
    if name.startswith("reference"):  # its dense weight is rounded to the dtype of x
        error = error + SPACING[x.dtype] * taken.sizes.sum(-1, keepdim=True)
        error = error + k * UNIT[torch.float32] * bias.abs()  # the sum may begin with it
        if not rounding.is_none:  # and x as well, once more
            error = error + SPACING[x.dtype] * problem.dense.abs().sum(-1)
    nothing = (problem.dense == 0).all(1) & name.startswith("native")
    error = torch.where(nothing, unit * bias.abs() * 2.01 + SPACING[x.dtype] * bias.abs().sign(), error)
    most = torch.maximum(size, taken.sizes @ problem.unscaled.t())
    if not rounding.is_none or name.startswith("native.int4_a8"):
        most = torch.maximum(most, 127 * problem.size.sum(-1))  # whole numbers times the scale, before the step
    if not name.startswith("native"):  # a dense weight, of the reference in the dtype of x
        kind = x.dtype if name.startswith("reference") else torch.float32
        most = torch.where(problem.dense.abs().amax(1) >= torch.finfo(kind).max, float("inf"), most)
    return _outside(want, got, error, finite, most, torch.finfo(x.dtype))


def _outside(want: Tensor, got: Tensor, error: Tensor, finite: Tensor, most: Tensor, info: torch.finfo) -> str:
    overflows = (want.abs() + error >= info.max) | (most >= torch.finfo(torch.float32).max)
    near = (got - want).abs() <= error
    good = torch.where(finite, near | overflows, ~got.isfinite())
    # Too large for the dtype: the largest number or infinity of the right sign, never a small one.
    small = (
        overflows
        & finite
        & (want.abs() - error > info.max)
        & (got.abs() < info.max * 0.99)
        & (most < torch.finfo(torch.float32).max)
    )
    wrong = ~good | small
    if not bool(wrong.any()):
        return ""
    row, column = (int(i) for i in wrong.nonzero()[0])
    numbers = f"is {float(want[row, column]):.8g}, got {float(got[row, column]):.8g}, allowed {float(error[row, column]):.2g}"
    return f"y[{row}, {column}] {numbers} ({int(wrong.sum())} of {wrong.numel()})"


@dataclass(frozen=True, slots=True)
class Taken:
    """x as a row takes it, float64 [M, K]: its values, by how much each may be off, and what it is computed from at most."""

    values: Tensor
    slack: Tensor
    sizes: Tensor


def _rounded(problem: Problem, name: str, rounding: ActivationQuant, x: Tensor) -> Taken:
    exact = x.double()
    size = exact.abs().nan_to_num(0.0, 0.0, 0.0)
    if rounding.is_none:
        return Taken(exact, _half_steps(problem, x) if name.startswith("native.int4_a8") else torch.zeros_like(exact), size)
    codes, step, offset = rounding.codes(x, problem.act_scale, problem.act_zero)
    wide = step.double()
    values = (codes.double() if offset is None else codes.double() - offset.double()) * wide
    quotient = exact / wide
    halfway = ((quotient - quotient.floor() - 0.5).abs() <= HALFWAY * (quotient.abs() + 1)) | ~quotient.isfinite()
    slack = torch.where(halfway, wide.expand(exact.shape), 0.0)
    size = values.abs() if offset is None else (codes.double().abs() + offset.double().abs() + 128) * wide
    if offset is not None and rounding.kind == "token_asymmetric":  # where the zero point itself is halfway, all codes move
        slack = slack + wide * HALFWAY * 256
    # The step is made in float32 in one order of operations or another; near 2^-126 it may be zero (zentorch: far above that).
    least = 2.0**-100 if name.startswith("zentorch") else 2.0**-125
    slack = slack + values.abs() * 2.0**-22 + torch.where(wide < least, values.abs(), 0.0)
    return Taken(values, slack.nan_to_num(0.0, 0.0, 0.0), size.nan_to_num(0.0, 0.0, 0.0))


def _half_steps(problem: Problem, x: Tensor) -> Tensor:
    """Half a step of the groups in which int4_a8 rounds x by itself: the largest of a group / 127 / 2."""
    perm = problem.weight.perm
    ordered = x.double() if perm is None else x.double()[:, perm]
    group = a8_group(problem.site())
    largest = in_groups(ordered.abs().nan_to_num(0.0, 0.0, 0.0), group).amax(-1)
    steps: Tensor = (largest / 127 * 0.501).repeat_interleave(group, 1)[:, : ordered.shape[1]]
    return steps if perm is None else steps[:, torch.argsort(perm)]
