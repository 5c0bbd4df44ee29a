"""Random contents of constants: codes, and scales of every magnitude, with what stands in no range of a probe."""

from random import Random

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# How often which content of a scale is met. The first is what real checkpoints hold.
SCALES = {
    "usual": 8,
    "powers of two": 1,
    "wide": 2,
    "some zero": 2,
    "all zero": 1,
    "negative": 1,
    "tiny": 2,
    "subnormal": 1,
    "large": 2,
    "huge": 2,
    "around one": 2,
    "around 65504": 1,
    "one NaN": 1,
    "one infinity": 1,
}


def generator(rng: Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(2**62))


def pick(rng: Random, weighted: dict[str, int]) -> str:
    return rng.choices(list(weighted), list(weighted.values()))[0]


def scales(rng: Random, shape: tuple[int, ...], dtype: torch.dtype, kind: str | None = None) -> tuple[Tensor, str]:
    """(positive or other scales of one of the kinds above, the kind)."""
    kind = kind or pick(rng, SCALES)
    draw = generator(rng)
    unit = torch.rand(shape, generator=draw) + 0.5
    info = torch.finfo(dtype)
    factor = {
        "around one": 2.0,
        "tiny": 10.0 ** -rng.randrange(5, 31, 5),
        "subnormal": float(info.tiny) / 16,
        "large": 10.0 ** rng.randrange(1, 5),
        "huge": float(info.max) / 10.0 ** rng.randrange(1, 8),
        "around 65504": 600.0,
    }.get(kind, 0.01)
    values = unit * factor
    if kind == "powers of two":
        values = torch.exp2(torch.randint(-12, 0, shape, generator=draw).float())
    elif kind == "wide":
        values = torch.exp(torch.randn(shape, generator=draw) * 4 - 5).clamp(max=float(info.max))
    elif kind == "some zero":
        values = values * (torch.rand(shape, generator=draw) > 0.2)
    elif kind == "all zero":
        values = values * 0
    elif kind == "negative":
        values = values * (torch.randint(0, 2, shape, generator=draw) * 2 - 1)
    elif kind.startswith("one ") and values.numel():
        values.view(-1)[rng.randrange(values.numel())] = float("nan") if kind == "one NaN" else float("inf")
    return values.to(dtype), kind


def block_scales(rng: Random, shape: tuple[int, ...]) -> Tensor:
    """Any finite E4M3, or E8M0 of usual size."""
    draw = generator(rng)
    if rng.random() < 0.5:
        sign = torch.randint(0, 2, shape, generator=draw) * 128 if rng.random() < 0.2 else 0
        return (torch.randint(0, 127, shape, generator=draw) + sign).to(torch.uint8).view(torch.float8_e4m3fn)
    return torch.randint(97, 137, shape, generator=draw).to(torch.uint8).view(torch.float8_e8m0fnu)


def numbers(rng: Random, shape: tuple[int, ...], kind: str) -> Tensor:
    """Any finite E4M3, or E5M2 up to 112, as int8."""
    found = torch.randint(0, 256, shape, generator=generator(rng)).to(torch.uint8)
    found[found & 0x7F >= (0x7F if kind == "e4m3" else 0x58)] = 0x35
    return found.view(torch.int8)


def codes(rng: Random, shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype) -> Tensor:
    """Integers low .. high - 1; at times all equal, or only the two ends."""
    kind = pick(rng, {"all": 12, "ends": 1, "one": 1, "few": 1})
    draw = generator(rng)
    if kind == "ends":
        return (torch.randint(0, 2, shape, generator=draw) * (high - 1 - low) + low).to(dtype)
    if kind == "one":
        return torch.full(shape, rng.randrange(low, high)).to(dtype)
    if kind == "few":
        return torch.randint(low, max(low + 1, (low + high) // 2 + 1), shape, generator=draw).to(dtype)
    return torch.randint(low, high, shape, generator=draw).to(dtype)


def rows(rng: Random, shape: tuple[int, ...], dtype: torch.dtype, size: float = 1.0) -> Tensor:
    """Ordinary activations."""
    return (torch.randn(shape, generator=generator(rng)) * size).to(dtype)
