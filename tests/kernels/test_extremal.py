"""Every kernel that runs here, and our own at every level, at the edges of their numbers: x, codes, scales, zero points and sizes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support import extremal
from support.extremal import Extreme, objections, rounded, tokens, weights
from support.native_weights import DTYPES, EVERY_DTYPE, EVERY_LEVEL, require_kernels
from torch import Tensor

from qcompile.activations import NO_ACTIVATION_QUANT, ActivationQuant
from qcompile.hardware import platform
from qcompile.kernel import Extras, Kernel, Site
from qcompile.meaning import Operands
from qcompile.targets import native
from qcompile.targets.native import OWN_ROUNDING
from qcompile.targets.registry import kernels
from qcompile.timing.trial import prepared

ROUNDINGS = (
    NO_ACTIVATION_QUANT,
    ActivationQuant("token", 127.5, -128),
    ActivationQuant("token", 127.0, -127),
    ActivationQuant("token_asymmetric"),
    ActivationQuant("tensor"),
)
# n, k, group: one output, one group, and neither a multiple of the kernels' blocks nor of their lines.
SIZES = ((1, 32, 32), (48, 64, 32), (33, 96, 96), (17, 40, 8))
HERE = [row for row in kernels().values() if not row.missing(platform())]
SCALE = torch.tensor([0.25])


def site_of(weight: Extreme, dtype: torch.dtype, rounding: ActivationQuant, *, allow_a8: bool = False) -> Site:
    q, s, z, *_ = weight.operands
    ends = (0, 0) if z is None else (int(z.min()), int(z.max()))
    n, k = q.shape
    return Site(
        n=n, k=k, bits=weight.bits, group=weight.group, symmetric=z is None, dtype=dtype, scale_dtype=s.dtype, activation=rounding,
        zero_range=ends, allow_a8=allow_a8,
    )  # fmt: skip


def with_scale(weight: Extreme, rounding: ActivationQuant) -> Operands:
    return weight.operands._replace(act_scale=SCALE if rounding.kind == "tensor" else None)


def x_rounded(x: Tensor, rounding: ActivationQuant) -> tuple[Tensor, Tensor]:
    return rounded(x, rounding, SCALE if rounding.kind == "tensor" else None)


def tried(kernel: Kernel, run: Callable[[Tensor], Tensor], site: Site, weight: Extreme) -> list[str]:
    x = tokens(site.k, site.dtype)
    wanted = x_rounded(x, kernel.rounding(site))
    found = objections(run(x), wanted, weight)
    alone = torch.cat([run(x[row : row + 1]) for row in range(len(x))])
    found += [f"alone: {text}" for text in objections(alone, wanted, weight)]
    many = run(x.repeat(24, 1))[-len(x) :]
    found += [f"of many: {text}" for text in objections(many, wanted, weight)]
    assert run(x[:0]).shape == (0, site.n)
    return found


@EVERY_DTYPE
@pytest.mark.parametrize("kernel", HERE, ids=lambda row: row.name)
def test_kernels_at_their_edges(kernel: Kernel, dtype: torch.dtype) -> None:
    found: list[str] = []
    sites = 0
    for bits in (4, 8):
        for n, k, group in SIZES[:2] if kernel.target == "reference" else SIZES:
            for weight in weights(n, k, group, bits, torch.float16 if dtype is torch.float16 else torch.float32):
                for rounding in ROUNDINGS:
                    site = site_of(weight, dtype, rounding)
                    if kernel.refuses(site):
                        continue
                    sites += 1
                    run = prepared(kernel, site, with_scale(weight, rounding))
                    found += [f"{n}x{k} {rounding.spec} {text}" for text in tried(kernel, run, site, weight)]
    assert not found, (len(found), found[:6])
    assert sites or kernel.refuses(Site(n=16, k=64, bits=4, group=64, dtype=dtype, scale_dtype=dtype)), "nothing was tried"


def _at(level: int, kernel: Kernel, site: Site, operands: Operands) -> Callable[[Tensor], Tensor]:
    """The native kernel's operator at one level."""
    packed = kernel.packed(operands, site)
    ops: Any = torch.ops.qcompile
    unrounded = {"native.int4": ops.native_int4_linear, "native.int8_a16": ops.native_int8_a16_linear}
    if kernel.name in unrounded:
        op = unrounded[kernel.name].default
        return lambda x: op(x, packed[0], None, None, site.n, site.k, site.group, level=level)
    op = partial((ops.native_int4_a8_linear if kernel.name == "native.int4_a8" else ops.native_int8_linear).default, level=level)
    kind = site.activation.kind
    return lambda x: native._call_rounded(
        op, x, packed[:1], Extras(**dict(zip(site.extras, packed[1:], strict=True))), site, kind, site.group, 0
    )  # pyright: ignore[reportPrivateUsage]


@EVERY_LEVEL
@pytest.mark.parametrize("name", ["native.int4", "native.int8", "native.int8_a16", "native.int4_a8"])
def test_native_kernels_at_every_level(name: str, level: int) -> None:
    require_kernels()
    kernel = kernels()[name]
    found: list[str] = []
    for dtype in DTYPES:
        for n, k, group in SIZES:
            for weight in weights(n, k, group, 8 if "int8" in name else 4, dtype):
                for rounding in ROUNDINGS:
                    site = site_of(weight, dtype, rounding)
                    if kernel.refuses(site):
                        continue
                    run = _at(level, kernel, site, with_scale(weight, rounding))
                    x = tokens(k, dtype)
                    texts = objections(run(x), x_rounded(x, rounding), weight)
                    found += [f"{dtype} {n}x{k} {rounding.spec} {text}" for text in texts]
    assert not found, (len(found), found[:6])


def test_unasked_rounding_keeps_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the option allow_a8, kernels round in their own way."""
    assert OWN_ROUNDING.kind == "token"
    for kernel in HERE:
        (weight, *_) = weights(48, 64, 64, 4, torch.float32)
        site = site_of(weight, torch.bfloat16, NO_ACTIVATION_QUANT, allow_a8=True)
        if not kernel.refuses(site):
            x = tokens(64, torch.bfloat16)
            y = prepared(kernel, site, weight.operands)(x)
            assert not y[: extremal.NOT_FINITE].isfinite().any(), kernel.name
            assert bool(y[extremal.NOT_FINITE : 8].isfinite().all()), kernel.name
