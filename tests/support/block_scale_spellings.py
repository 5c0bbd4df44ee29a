"""Ways to write a code book's weight with scales of 8 bits for each block, alone or times a second level, and what is none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from support.float8_spellings import E4M3, E8M0
from support.spellings import BF16, F32, linear, nibbles
from torch import Tensor

from qcompile.codebooks import E2M1

N, K = 32, 256
Scales = Callable[[Any], Tensor]


@dataclass(frozen=True, slots=True)
class Blocks:
    """weight(module) float [N, K] (or float64 of the same formula for float64 tensors); forward: if it is not a linear with it."""

    weight: Callable[[Any], Tensor]
    group: int = 16
    outer: bool = True
    forward: Callable[[Any, Tensor], Tensor] | None = None

    def __call__(self, m: Any, x: Tensor) -> Tensor:
        return linear(x, self.weight(m).to(x.dtype)) if self.forward is None else self.forward(m, x)


def tensors(group: int) -> dict[str, Tensor]:
    torch.manual_seed(3)
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8)
    codes[:, :16] = torch.arange(16, dtype=torch.uint8)
    blocks = (torch.rand(N, K // group) * 400 + 1).to(E4M3)
    return {
        "p": nibbles(codes),
        "table": torch.tensor(E2M1),
        "s": blocks,
        "bytes": blocks.view(torch.uint8),
        "e": torch.randint(110, 120, (N, K // group), dtype=torch.uint8),
        "g": torch.tensor([7.31e-5]),
        "inverse": torch.tensor([13690.4]),
        "outer": torch.rand(N, 1) * 1e-4 + 1e-5,
        "halves": torch.rand(N, 2) * 1e-4 + 1e-5,
        "wide": torch.rand(N, K // group) * 400 + 1,
    }


def values(m: Any, scales: Tensor, group: int = 16) -> Tensor:
    codes = torch.stack((m.p & 15, m.p >> 4), -1).reshape(N, -1, group)
    return (m.table[codes.long()] * scales[..., None]).reshape(N, K)


def _by_last(m: Any) -> Tensor:
    return values(m, m.s.float()) * m.g


def _after(m: Any, x: Tensor) -> Tensor:
    return linear(x, values(m, m.s.float()).to(x.dtype)) * m.g.to(x.dtype)


BLOCKS = {
    "global multiplies": Blocks(lambda m: values(m, m.s.float() * m.g)),
    "global divides": Blocks(lambda m: values(m, m.s.float() / m.inverse)),
    "global first": Blocks(lambda m: values(m, m.g * m.s.float())),
    "global last": Blocks(_by_last),
    "inverted global": Blocks(lambda m: values(m, m.s.float() * (1.0 / m.inverse))),
    "bytes seen as E4M3": Blocks(lambda m: values(m, m.bytes.view(E4M3).to(F32) * m.g)),
    "one for each output": Blocks(lambda m: values(m, m.s.float() * m.outer)),
    "one for each output, last": Blocks(lambda m: values(m, m.s.float()) * m.outer),
    "E4M3 alone": Blocks(lambda m: values(m, m.s.float()), outer=False),
    "exponents": Blocks(lambda m: values(m, torch.exp2(m.e.float() - 127), 32), 32, outer=False),
    "exponents shifted": Blocks(lambda m: values(m, (m.e.int() << 23).view(F32), 32), 32, outer=False),
    "exponents seen as E8M0": Blocks(lambda m: values(m, m.e.view(E8M0).float(), 32), 32, outer=False),
    "exponents and a global": Blocks(lambda m: values(m, m.e.view(E8M0).float() * m.g, 32), 32),
    "global after the product": Blocks(lambda m: values(m, m.s.float() * m.g), forward=_after),
}

# Scales that are no 8 bits times a float for each output, with the bytes of one of them.
ONE_LEVEL = {
    "rounded on the way": (Blocks(lambda m: values(m, (m.s.float() * m.g).to(BF16).float())), 2),
    "an outer scale for each half": (Blocks(lambda m: values(m, m.s.float() * m.halves.repeat_interleave(K // 32, 1))), 4),
    "scales of float32": (Blocks(lambda m: values(m, m.wide * m.g)), 4),
    "nearly a product": (Blocks(lambda m: values(m, m.s.float() * m.g * (1 + 1e-4 * (m.wide > 200)))), 4),
    "a sum": (Blocks(lambda m: values(m, m.s.float() * m.g + 1e-3)), 4),
}
