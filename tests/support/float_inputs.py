"""Inputs that rounding to small floats is tried on: usual numbers, every magnitude, halfway cases, zeros, NaN, infinities, any bits."""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS, K = 16, 256


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(in words, x [1, ROWS, K])."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(1, ROWS, K, generator=generator)
    yield "normal", x.to(dtype)
    for exponent in range(-160, 130, 7):
        yield f"around 2^{exponent}", (x * 2.0**exponent).to(dtype)
    yield "halfway", (torch.randint(-24, 25, x.shape, generator=generator) / 4.0).to(dtype)
    special = x.clone()
    special[0, 3, 5], special[0, 4, 7], special[0, 7, 100] = float("nan"), float("inf"), float("-inf")
    special[0, 5], special[0, 6, ::16] = 0.0, -0.0
    yield "NaN, infinities and zeros", special.to(dtype)
    yield "very different sizes", (x * torch.exp(torch.randn(x.shape, generator=generator) * 20)).to(dtype)
    edges = x.clamp(-1.75, 1.75)
    edges[0, :, 0], edges[0, :, 32], edges[0, :, 64] = 1.75, 1.7499, 3.5
    yield "at the edge of a power of two", edges.to(dtype)
    words = torch.randint(-(2**31), 2**31 - 1, x.shape, generator=generator, dtype=torch.int64).to(torch.int32)
    halves = torch.randint(-(2**15), 2**15 - 1, x.shape, generator=generator).to(torch.int16)
    yield "any bits", words.view(torch.float32) if dtype is torch.float32 else halves.view(dtype)


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Equal, zeros with their signs; any NaN is as good as another."""
    equal = (ours == theirs) & (torch.signbit(ours) == torch.signbit(theirs))
    return ours.dtype is theirs.dtype and bool((equal | (ours.isnan() & theirs.isnan())).all())
