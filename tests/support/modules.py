"""Small modules that dequantize in their forward, for the passes' tests."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Int8(nn.Module):
    """x [..., 32] @ W.T with W [16, 32] = codes * scale; `forward` can be replaced by another spelling."""

    codes: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, spelling: Callable[["Int8", Tensor], Tensor] | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("codes", torch.randint(-127, 128, (16, 32), dtype=torch.int8, generator=generator))
        self.register_buffer("scale", torch.rand(16, generator=generator) * 0.01 + 0.01)
        self.register_buffer("bias", torch.rand(16, generator=generator))
        self.spelling = spelling

    def weight(self) -> Tensor:
        return self.codes.to(torch.float32) * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(self, x) if self.spelling is not None else linear(x, self.weight())


class Pair(nn.Module):
    """Two linears of one kind on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Int8(), Int8()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], dim=-1)
