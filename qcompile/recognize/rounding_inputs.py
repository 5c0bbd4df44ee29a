"""Inputs that tell roundings to small floats apart: halfway points, edges of scales, every magnitude, zeros, NaN, infinities."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qcompile.float_rounding import FLOAT_KINDS, FP4_MOST, FP8_MOST

_E2M1_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
# Edges of what a power of two may be rounded from: down, up, to nearest in size or logarithm, and up from 1.75 on.
_POWER_EDGES = (1.0, 1.25, math.sqrt(2.0), 1.5, 1.75)
_NEAR = 2  # numbers to each side of an edge
_PLAIN, _PER_SIZE = 96, 2  # groups


class Stream:
    """The usual inputs of a kind, group after group, to be drawn in any shape whose last dimension is whole groups."""

    def __init__(self, kind: str, dtype: torch.dtype, scale: Tensor | None) -> None:
        self._values = torch.cat([part.reshape(-1) for part in _groups(kind, dtype, scale)])
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at >= self._values.numel()

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next values; behind the last one they begin anew."""
        count = math.prod(shape)
        numbers = torch.arange(self._at, self._at + count, dtype=torch.int64, device="cpu") % self._values.numel()
        self._at += count
        return self._values[numbers].reshape(tuple(shape))


def unit_of(kind: str, scale: Tensor | None) -> float:
    """The size of usual inputs: NVFP4's global scale says how large they may be."""
    return 1.0 if kind != "nvfp4" or scale is None else FP4_MOST * FP8_MOST / float(scale) / 8


def plain(shape: Sequence[int], dtype: torch.dtype, unit: float, seed: int = 0) -> Tensor:
    drawn = torch.randn(tuple(shape), generator=_generator(seed), dtype=torch.float32, device="cpu") * unit
    return _finite(drawn, dtype)


# What stands in the first and in the last row besides usual numbers.
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0)


def special(shape: Sequence[int], dtype: torch.dtype, unit: float, value: float) -> Tensor:
    """Usual numbers with one such value in two rows; of zeros whole groups."""
    x = plain(shape, dtype, unit, 1)
    rows = x.view(-1, x.shape[-1])
    rows[0, : 32 if value == 0 else 1] = value
    rows[-1, -32 if value == 0 else -1 :] = value
    return x


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(77 + seed)


def _finite(values: Tensor, dtype: torch.dtype) -> Tensor:
    most = torch.finfo(dtype).max
    return values.clamp(-most, most).to(dtype)


def _groups(kind: str, dtype: torch.dtype, scale: Tensor | None) -> Iterator[Tensor]:
    """[count, group] each, in `dtype`."""
    size = FLOAT_KINDS[kind].group
    info = torch.finfo(dtype)
    least, most = int(math.log2(info.smallest_normal * info.eps)), int(math.log2(info.max))
    unit = unit_of(kind, scale)
    spread = torch.exp2(24 * torch.rand(_PLAIN, 1, generator=_generator(2), dtype=torch.float32, device="cpu") - 18)
    yield plain((_PLAIN, size), dtype, 1.0, 3)
    yield _finite(plain((_PLAIN, size), torch.float32, unit, 4) * spread, dtype)
    powers = torch.exp2(_exponents(least, most))
    of_sizes = plain((powers.numel(), _PER_SIZE * size), torch.float32, 1.0, 5).double() * powers[:, None]
    yield _finite(of_sizes, dtype).view(-1, size)
    if kind == "nvfp4":
        assert scale is not None
        blocks = torch.arange(1, 127, dtype=torch.uint8, device="cpu").view(torch.float8_e4m3fn).double()
        below = torch.cat((torch.zeros(1, dtype=torch.float64, device="cpu"), blocks[:-1]))
        steps, edges = blocks / float(scale), FP4_MOST * (blocks + below) / 2 / float(scale)
        yield from _halfway(steps, FP4_MOST, _E2M1_MIDDLES, size, dtype)
    else:
        edges = (powers[:, None] * torch.tensor(_POWER_EDGES, dtype=torch.float64, device="cpu")).flatten()
        # The largest size of a group whose scale is the step: below 1.75 * 2^2 and 1.75 * 2^8.
        largest, middles = (FP4_MOST, _E2M1_MIDDLES) if kind == "mxfp4" else (432.0, _e4m3_middles())
        steps = powers[powers <= info.max / 512]
        yield from _halfway(steps, largest, middles, size, dtype)
    yield _at_edges(edges, size, dtype)


def _exponents(least: int, most: int) -> Tensor:
    """Those of a dtype: all that are near its ends or 0, and some between."""
    chosen = {*range(least, most + 1, 7), *range(least, least + 4), *range(most - 3, most + 1), *range(-2, 3)}
    return torch.tensor(sorted(chosen), dtype=torch.float64, device="cpu")


def _e4m3_middles() -> tuple[float, ...]:
    numbers = torch.arange(0, 127, dtype=torch.uint8, device="cpu").view(torch.float8_e4m3fn).double()
    middles: list[float] = ((numbers[1:] + numbers[:-1]) / 2).tolist()
    return tuple(middles)


def _halfway(steps: Tensor, largest: float, middles: Sequence[float], size: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """For each step groups with the largest value that has it, and all that is halfway between two numbers, or nearly."""
    tested = _near(steps[:, None] * torch.tensor(middles, dtype=torch.float64, device="cpu"), dtype).flatten(1)
    tested = torch.cat((tested, tested[:, : -tested.shape[1] % (size - 1)]), 1).view(-1, size - 1)
    tested[:, ::2] = -tested[:, ::2]
    top = _finite(steps * largest, dtype).repeat_interleave(tested.shape[0] // steps.numel())
    yield torch.cat((top[:, None], tested), 1)


def _at_edges(edges: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Groups whose largest value is such an edge, or near it."""
    tops = _near(edges, dtype).flatten()
    drawn = torch.rand((tops.numel(), size), generator=_generator(6), dtype=torch.float32, device="cpu") * 2 - 1
    groups = (drawn.double() * tops.double()[:, None]).to(dtype)
    places = torch.arange(tops.numel(), dtype=torch.int64, device="cpu")
    groups[places, places % size] = torch.where(places % 2 == 0, tops, -tops)
    return groups


def _near(values: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., 2 * _NEAR + 1]: the nearest numbers of `dtype` to positive values."""
    nearest = _finite(values, dtype)
    whole = torch.int32 if nearest.element_size() == 4 else torch.int16
    most = int(torch.tensor(torch.finfo(dtype).max, dtype=dtype, device="cpu").view(whole))
    beside = torch.arange(-_NEAR, _NEAR + 1, dtype=torch.int32, device="cpu")
    bits = (nearest.view(whole).to(torch.int32)[..., None].clamp(max=most - _NEAR) + beside).clamp(min=0)
    return bits.to(whole).view(dtype)
