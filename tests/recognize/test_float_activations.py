"""Activations that a graph rounds to FP8 are found by what it computes, and what is nearly such a rounding is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.float8_spellings import E4M3, numbers, steps
from support.spellings import BF16, F32, N, Written, linear
from torch import Tensor

import qcompile
from qcompile.meaning import sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_compiler")

K = 256


def _rounded(x: Tensor, scale: Tensor) -> Tensor:
    return (x / scale).clamp(-448, 448).to(E4M3)


def _weight(m: Any, dtype: torch.dtype) -> Tensor:
    return m.w.to(dtype) * m.s.to(dtype)


def _token(m: Any, x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 448
    return linear(_rounded(x, scale).to(x.dtype) * scale, _weight(m, x.dtype))


def _token_wide(m: Any, x: Tensor) -> Tensor:
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
    return linear((_rounded(wide, scale).float() * scale).to(x.dtype), _weight(m, x.dtype))


def _groups(m: Any, x: Tensor) -> Tensor:
    wide = x.float().unflatten(-1, (-1, 128))
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
    return linear((_rounded(wide, scale).float() * scale).flatten(-2).to(x.dtype), _weight(m, x.dtype))


def _static(m: Any, x: Tensor) -> Tensor:
    return linear(_rounded(x.float(), m.a).float().mul(m.a).to(x.dtype), _weight(m, x.dtype))


def tensors() -> dict[str, Tensor]:
    return {"w": numbers(N, K), "s": steps(N, 1, dtype=BF16), "a": torch.tensor(0.02)}


Forward = Callable[[Any, Tensor], Tensor]
FOUND: dict[str, tuple[Forward, str]] = {
    "token": (_token, "a8 fp8 token"),
    "token in float32": (_token_wide, "a8 fp8 token"),
    "groups of 128": (_groups, "a8 fp8 g128"),
    "static": (_static, "a8 fp8 static"),
}


def run(forward: Forward, dtype: torch.dtype) -> tuple[Tensor, Tensor, Any]:
    torch.manual_seed(5)
    model, x = Written(forward, tensors()), torch.randn(6, K).to(dtype)
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", "measure": False})(x)
    (row,) = qcompile.report().sites
    return want, got, row


@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "f32"])
@pytest.mark.parametrize("name", FOUND)
def test_is_found(name: str, dtype: torch.dtype) -> None:
    forward, words = FOUND[name]
    want, got, row = run(forward, dtype)
    assert row.kernel == "native.fp8" and row.scheme == f"fp8 channel, {words}"
    assert sqnr_db(want, got) >= 45.0


def _by(change: Callable[[Tensor], Tensor], most: float = 448.0) -> Forward:
    def forward(m: Any, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-6) / most
        return linear(change(x / scale).to(x.dtype) * scale, _weight(m, x.dtype))

    return forward


LOOK_ALIKES: dict[str, Forward] = {
    "another largest number": _by(lambda q: q.clamp(-448, 448).to(E4M3), 300.0),
    "E5M2": _by(lambda q: q.to(torch.float8_e5m2)),
    "rounded up": _by(lambda q: (q.abs() * 1.0625).clamp(max=448).to(E4M3).to(q.dtype) * q.sign()),
    "half of the tokens": lambda m, x: _token(m, torch.where(torch.arange(6)[:, None] < 3, x, x * 1.37)),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_what_is_nearly_a_rounding_stays_in_the_graph(name: str) -> None:
    """The weight is served all the same, with activations as the graph makes them."""
    want, got, row = run(LOOK_ALIKES[name], F32)
    assert row.kernel == "native.fp8" and (row.scheme == "fp8 channel" or name == "half of the tokens")
    assert sqnr_db(want, got) >= 45.0
