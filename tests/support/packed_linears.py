"""Prepared linears (front-door modules) with random 4-bit weights, without any checkpoint library."""

import torch
from support.spellings import scale, uint4, words
from torch import Tensor, nn

from qcompile.frontends.linear import PackedLinear, become
from qcompile.operators import Structure

UINT4_DEVIATION = 4.6  # of the codes 0 .. 15, all equally likely


def packed_linear(
    n: int,
    k: int,
    group: int = 32,
    *,
    path: str = "",
    asymmetric: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    g_idx: Tensor | None = None,
) -> nn.Module:
    """compressed-tensors' W4A16 layer as `prepare` leaves it: weight_packed int32 [N, K / 8], weight_scale [N, K / group]."""
    module = nn.Linear(k, n, bias=False)
    del module.weight
    # An output is as large as an input: else the later of many layers would compute with next to nothing, and none could be wrong.
    size = scale(n, k // group, dtype=torch.float32)
    size = size / (size.square().mean().sqrt() * UINT4_DEVIATION * k**0.5)
    tensors = {"weight_packed": words(uint4(n, k)), "weight_scale": size.to(dtype)}
    if asymmetric:
        tensors["weight_zero_point"] = words(torch.randint(0, 16, (k // group, n), dtype=torch.uint8)).T.contiguous()
    if g_idx is not None:
        tensors["weight_g_idx"] = g_idx
    for name, tensor in tensors.items():
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    become(module, PackedLinear, Structure("ct_pack", 4, group, n, k), path)
    return module


class Block(nn.Module):
    """Four prepared linears, two of which read the same input."""

    def __init__(self, width: int = 64, asymmetric: bool = False, path: str = "", dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()

        def linear(name: str) -> nn.Module:
            return packed_linear(width, width, path=f"{path}{name}", asymmetric=asymmetric, dtype=dtype)

        self.gate, self.up, self.down, self.out = (linear(name) for name in ("gate", "up", "down", "out"))

    def forward(self, x: Tensor) -> Tensor:
        # The tangent keeps a stack of many from growing without end.
        y: Tensor = self.out(x + self.down(nn.functional.silu(self.gate(x)) * self.up(x)))
        return y.tanh()


class Stack(nn.Module):
    """A stack of blocks, one after the other."""

    def __init__(self, depth: int = 2, width: int = 64, asymmetric: bool = False, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, asymmetric, f"layers.{index}.", dtype) for index in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
