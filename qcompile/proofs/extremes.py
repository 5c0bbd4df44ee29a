"""Tries a kernel on numbers at the edge: tokens with NaN, infinities, zeros, the least and large numbers, and scales of odd size.

A made-up weight of the site's kind does for this, with few outputs, so it is tried once for each kind and takes milliseconds.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.kernel import Kernel, Site
from qcompile.meaning import BLOCK_SCALE_DTYPES, Operands, dense_of, groups_each, scales_of, sqnr_db
from qcompile.timing.trial import operands, prepared

_OUTPUTS = 64  # of the made-up weight, and as many more as the site's number is over a multiple of it
_LEVELS = ("scales", "outer", "offsets")
_LEAST_DB = 30.0  # what is wrong here is so by a factor; how exact a kernel is, its proof on the real weight shows
_LEAST_FLOAT16_DB = 6.0
_ROWS = ("NaN", "infinity", "minus infinity", "zeros only", "the least numbers", "large numbers")


def objection(kernel: Kernel, site: Site) -> str:
    """ "" or the sentence why the kernel must not be used for a site of this kind; it must run on this machine.

    In a token with NaN or infinity, what the formula says is no finite number must not become one, and the other tokens are right.
    """
    few = site.n if site.n < 2 * _OUTPUTS else _OUTPUTS + site.n % _OUTPUTS
    middle = sum(site.zero_range) // 2
    return _objection(kernel, replace(site, n=few, zero_range=(middle, middle)))


@cache
def _objection(kernel: Kernel, site: Site) -> str:
    try:
        if kernel.refuses(site):  # takes no weight so small
            return ""
        with torch.no_grad():
            return _tried(kernel, site, operands(site))
    except Exception as error:  # whatever a foreign library throws
        return f"failed on a made-up weight: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _tried(kernel: Kernel, site: Site, weight: Operands) -> str:
    run = prepared(kernel, site, weight)
    x = tokens(site)
    want = formula(x, weight, site, kernel.rounding(site))
    wrong = _compare(run(x), want, weight, site)
    for row in range(3):  # one token alone takes another way through most kernels
        wrong = wrong or _lost(run(x[row : row + 1]), want[row : row + 1], (_ROWS[row],))
    return wrong or _narrowed(kernel, site, weight)


def tokens(site: Site) -> Tensor:
    """x [6, K] of the site's dtype, a row for each of _ROWS."""
    generator = torch.Generator().manual_seed(1991)
    x = torch.randn(len(_ROWS), site.k, generator=generator, dtype=torch.float32, device="cpu")
    for row, number in enumerate((torch.nan, torch.inf, -torch.inf)):
        x[row, (7 * row + 3) % site.k] = number
    x[3] = 0.0
    x[4] *= torch.finfo(site.dtype).tiny / 4
    # Outputs of any dtype hold the sums of K such numbers times small codes.
    x[5] *= 1e30 if site.dtype is not torch.float16 else 2048.0 / site.k**0.5
    return x.to(site.dtype)


def formula(x: Tensor, weight: Operands, site: Site, rounding: ActivationQuant) -> Tensor:
    """The canonical operation in float32: float32 [M, N]."""
    rounded = rounding.apply(x, weight.act_scale, weight.act_zero).to(torch.float32)
    if weight.perm is not None:
        rounded = rounded.index_select(-1, weight.perm)
    y = rounded @ dense_of(weight, site.group, site.codebook, site.outer_group).t()
    return y if weight.bias is None else y + weight.bias.to(torch.float32)


def _compare(y: Tensor, want: Tensor, weight: Operands, site: Site) -> str:
    wrong = _lost(y, want, _ROWS)
    if wrong:
        return wrong
    y = y.to(torch.float32)
    least = (
        float(torch.finfo(site.dtype).tiny)
        * site.k
        * float(scales_of(weight.scales, weight.outer, groups_each(site.group, site.outer_group)).abs().max())
        * 2.0 ** (site.bits + 1)
    )
    for row, name in enumerate(_ROWS):
        if not bool(want[row].isfinite().all()):
            continue
        if not bool(y[row].isfinite().all()):
            return f"gives NaN or infinity for a token of {name}"
        off = float((y[row] - want[row]).abs().max())
        if row in (3, 4):  # nothing, or next to nothing: it may become 0
            if off > (0.0 if row == 3 else least):
                return f"is off by {off:.3g} for a token of {name}"
        elif not sqnr_db(want[row], y[row]) >= _LEAST_DB:
            return f"is wrong for a token with {name}: {sqnr_db(want[row], y[row]):.1f} dB, at least {_LEAST_DB:.0f} is asked for"
    return ""


def _narrowed(kernel: Kernel, site: Site, weight: Operands) -> str:
    """The sentence for a kernel that does not keep a very small or very large scale of one output."""
    site = replace(site, rows=1)  # a scale of one output alone
    if weight.scales.dtype in BLOCK_SCALE_DTYPES and weight.outer is None:
        return ""  # as wide as the byte in which they are kept
    odd = weight._replace(**{name: item.clone() for name in _LEVELS if (item := getattr(weight, name)) is not None})
    level = odd.scales if odd.outer is None else odd.outer
    float16 = torch.float16 in (site.dtype, level.dtype)
    # float16 has no 2e-8, and outputs in it must stay below 65504.
    small, large = (2e-8 if level.dtype is not torch.float16 else 2.0**-20, 2.0) if float16 else (1e-30, 1e30)
    if odd.outer is not None:
        odd.scales[:2] = 1.0
    if odd.offsets is not None:
        odd.offsets[:2] = 0.0
    level[0] = small
    level[1:2] = large
    x = torch.randn(4, site.k, generator=torch.Generator().manual_seed(7), dtype=torch.float32, device="cpu")
    x = (x * (1024.0 / site.k if float16 else 1.0)).to(site.dtype)
    want, y = formula(x, odd, site, kernel.rounding(site)), prepared(kernel, site, odd)(x)
    for column, scale in zip(range(min(2, site.n)), (small, large), strict=False):
        # Weights of so small a scale are rounded in float16 themselves, but not all to 0.
        if not sqnr_db(want[:, column].to(y.dtype), y[:, column]) >= (_LEAST_FLOAT16_DB if float16 else _LEAST_DB):
            return f"does not keep a scale of {scale:.3g}"
    return ""


def _lost(y: Tensor, want: Tensor, names: tuple[str, ...]) -> str:
    """The sentence for a row in which the kernel has a finite number where there is none."""
    hidden = (~want.to(y.dtype).isfinite() & y.isfinite()).any(-1)
    return next((f"gives finite numbers for a token with {name}" for name, lost in zip(names, hidden, strict=True) if lost), "")
