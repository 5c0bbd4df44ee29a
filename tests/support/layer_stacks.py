"""Small models of quantized layers: int8 codes times scales, 32 x 32, in whatever tree a test needs."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import qcompile

OPTIONS = {"rest": "eager", "measure": False}


class Layer(nn.Module):
    """y = x @ (codes * scale).T"""

    codes: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(-8, 8, (32, 32)).to(torch.int8))
        self.register_buffer("scale", torch.rand(32, 1) * 0.02 + 0.01)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.codes.float() * self.scale)


class Stack(nn.Module):
    """Layers one after the other."""

    def __init__(self, depth: int = 2, layer: Callable[[], nn.Module] = Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(depth))

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Broken(Stack):
    """The graph ends after each layer."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            torch._dynamo.graph_break()
        return x


def wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
    """As decorators of libraries do: arguments are passed on without their names."""

    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return wrapper


def compiled(model: Any, **options: Any) -> Any:
    """torch.compile's result, which runs the rest eagerly."""
    return torch.compile(model, backend="qcompile", options={**OPTIONS, **options})


def names_after(call: Callable[[Tensor], Any]) -> list[str]:
    """The layers in the report after a call with two rows."""
    with torch.no_grad():
        call(torch.randn(2, 32))
    return sorted(row.module for row in qcompile.report().sites)
