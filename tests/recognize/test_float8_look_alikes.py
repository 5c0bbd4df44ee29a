"""What is nearly an FP8 weight is left as it is: one number off, another bias, offsets, scales that are none, NaN."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.float8_spellings import E4M3, E5M2, numbers, steps
from support.spellings import BF16, F32, G, K, N, Written, linear
from torch import Tensor

import qcompile

pytestmark = pytest.mark.usefixtures("fresh_compiler")

ONE = torch.where(torch.arange(N * K).reshape(N, K) == 777, 1.02, 1.0)


def _made(**more: Tensor) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"w": numbers(), "s": steps(N, 1), **more}


def _with(change: Callable[[Tensor, Any], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: linear(x, (change(m.w.to(F32), m) * m.s).to(x.dtype))


def _spoiled(kind: torch.dtype, byte: int) -> Callable[[], dict[str, Tensor]]:
    def made() -> dict[str, Tensor]:
        codes = numbers(dtype=kind)
        codes.view(torch.uint8)[3, 5] = byte
        return {"w": codes, "s": steps(N, 1)}

    return made


Case = tuple[Callable[[Any, Tensor], Tensor], Callable[[], dict[str, Tensor]]]
LOOK_ALIKES: dict[str, Case] = {
    "one number 2 % off": (_with(lambda w, m: w * m.one), _made(one=ONE)),
    "one number a step off": (_with(lambda w, m: w + (m.one != 1.0) * w.abs() / 8), _made(one=ONE)),
    "an offset in all": (_with(lambda w, _: w + 3.0), _made()),
    "an offset in each group": (
        _with(lambda w, m: (w.unflatten(1, (-1, G)) + m.z[..., None]).flatten(1)),
        lambda: {"w": numbers(), "s": steps(N, 1), "z": torch.randn(N, K // G)},
    ),
    "squares": (_with(lambda w, _: w * w), _made()),
    "clamped": (_with(lambda w, _: w.clamp(-100.3, 100.3)), _made()),
    "a power": (_with(lambda w, _: w.sign() * w.abs().sqrt()), _made()),
    "scales along both, no blocks": (
        lambda m, x: linear(x, (m.w.to(F32) * m.s * m.c).to(x.dtype)),
        lambda: {"w": numbers(), "s": steps(N, 1), "c": torch.rand(1, K) + 0.5},
    ),
    "blocks that begin elsewhere": (
        lambda m, x: linear(x, (m.w.to(F32) * m.s.repeat_interleave(G, 1).roll(3, 1)).to(x.dtype)),
        lambda: {"w": numbers(), "s": steps(N, K // G)},
    ),
    "another bias": (_with(lambda w, _: w), lambda: {"w": torch.randn(N, K).to(torch.float8_e4m3fnuz), "s": steps(N, 1)}),
    "NaN": (_with(lambda w, _: w), _spoiled(E4M3, 0x7F)),
    "infinity": (_with(lambda w, _: w), _spoiled(E5M2, 0x7C)),
    "the sum of two": (_with(lambda w, m: w + m.v.to(F32) / 64), lambda: {"w": numbers(), "s": steps(N, 1), "v": numbers()}),
    "rounded to tenths": (_with(lambda w, _: torch.round(w * 10) / 10 + w.sign() * 0.013), _made()),
}


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_look_alike_is_left_as_it_is(name: str, dtype: torch.dtype) -> None:
    forward, tensors = LOOK_ALIKES[name]
    model, x = Written(forward, tensors()), torch.randn(3, K).to(dtype)
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", "measure": False})(x)
    (row,) = qcompile.report().sites
    assert row.kernel is None and row.declined
    assert torch.equal(got, want) or bool((got.isnan() == want.isnan()).all() and want.isnan().any())
