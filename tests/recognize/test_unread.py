"""A weight that is not read says what it is: each reason, and that its numbers stay those of the eager code (unread)."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.spellings import BF16, F32, G, K, N, Written, int4, int8, linear, nibbles, scale, uint4
from torch import Tensor

import qcompile
from qcompile.codebooks import E2M1

pytestmark = pytest.mark.usefixtures("fresh_compiler")

UNEVEN = (-1.0, -0.68, -0.51, -0.38, -0.29, -0.17, -0.08, 0.0, 0.07, 0.17, 0.26, 0.35, 0.43, 0.55, 0.74, 1.0)


def groups(values: Tensor, s: Tensor) -> Tensor:
    return (values.float().reshape(N, -1, G) * s.float()[..., None]).reshape(N, K)


def book(entries: Any) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"p": uint4(), "s": scale(N, K // G), "table": torch.tensor(entries)}


def by_table(m: Any, x: Tensor) -> Tensor:
    return linear(x, groups(m.table[m.p.long()], m.s).to(x.dtype))


def vectors(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.table[m.p.long()].reshape(N, K) * m.s).to(x.dtype))


def by_arithmetic(m: Any, x: Tensor) -> Tensor:
    """Levels of a square root: sixteen values that no table holds."""
    return linear(x, groups(torch.sqrt(m.q.float() + 1), m.s).to(x.dtype))


def offset(m: Any, x: Tensor) -> Tensor:
    """The zero points of its groups are no integers, and made where there is one for every weight."""
    points = m.z.repeat_interleave(G, 1) * 0.37
    return linear(x, ((m.q.float() - points) * m.s.float().repeat_interleave(G, 1)).to(x.dtype))


def least(m: Any, x: Tensor) -> Tensor:
    points = m.z.repeat_interleave(G, 1) * 0.37
    return linear(x, (m.q.float() * m.s.float().repeat_interleave(G, 1) + points).to(x.dtype))


Case = tuple[Callable[..., Tensor], Callable[[], dict[str, Tensor]], str]

CASES: dict[str, Case] = {
    "float8 with another bias": (
        lambda m, x: linear(x, (m.w.float() * m.s).to(x.dtype)),
        lambda: {"w": torch.randn(N, K).to(torch.float8_e4m3fnuz), "s": scale(N, 1)},
        "stored as float8_e4m3fnuz",
    ),
    "float8 and noise": (
        lambda m, x: linear(x, (m.w.float() * m.s + m.noise).to(x.dtype)),
        lambda: {"w": torch.randn(N, K).to(torch.float8_e4m3fn), "s": scale(N, 1), "noise": torch.randn(N, K)},
        "not these numbers times scales",
    ),
    "float8 squared": (
        lambda m, x: linear(x, (m.w.view(torch.float8_e4m3fn).float().square() * m.s).to(x.dtype)),
        lambda: {"w": torch.randn(N, K).to(torch.float8_e4m3fn).view(torch.uint8), "s": scale(N, 1)},
        "not these numbers times scales",
    ),
    "a table of its own": (by_table, book(UNEVEN), "the 16 values of a table"),
    "an entry off": (by_table, book([2.3 if entry == 2.0 else entry for entry in E2M1]), "the 16 values of a table"),
    "an entry too many": (by_table, book([*E2M1[:8], 5.25, *E2M1[8:]]), "the 17 values of a table"),
    "vectors": (
        vectors,
        lambda: {"p": torch.randint(0, 256, (N, K // 8), dtype=torch.uint8), "s": scale(N, 1), "table": torch.randn(256, 8)},
        "a vector of 8 values",
    ),
    "levels by arithmetic": (by_arithmetic, lambda: {"q": uint4(), "s": scale(N, K // G)}, "16 different values"),
    "zero points that are no integers": (
        offset,
        lambda: {"q": uint4(), "s": scale(N, K // G), "z": torch.rand(N, K // G) * 15},
        "real offset",
    ),
    "least values": (
        least,
        lambda: {"q": uint4(), "s": scale(N, K // G, dtype=F32) + 0.01, "z": torch.rand(N, K // G) * 0.1},
        "real offset",
    ),
    "nine bits": (
        lambda m, x: linear(x, (m.q.float() * m.s).to(x.dtype)),
        lambda: {"q": torch.randint(-256, 256, (N, K), dtype=torch.int16), "s": scale(N, 1)},
        "more than 8 bits",
    ),
    "noise": (
        lambda m, x: linear(x, (m.q.float() * m.s + m.noise).to(x.dtype)),
        lambda: {"q": int8(), "s": scale(N, 1), "noise": torch.randn(N, K)},
        "does not become integers",
    ),
    "one code off": (
        lambda m, x: linear(x, ((m.q.float() + m.off) * m.s).to(x.dtype)),
        lambda: {"q": int4(), "s": scale(N, 1), "off": torch.where(torch.arange(N * K).reshape(N, K) == 777, 0.3, 0.0)},
        "",
    ),
    "groups of 2": (
        lambda m, x: linear(x, (m.q.float() * m.s.repeat_interleave(2, 1)).to(x.dtype)),
        lambda: {"q": int4().to(torch.int16), "s": scale(N, K // 2, dtype=F32)},
        "groups of 2, which would take more memory",
    ),
    "a scale that the input changes": (
        lambda m, x: linear(x, (m.q.float() * m.s * x.float().abs().amax()).to(x.dtype)),
        lambda: {"q": int4(), "s": scale(N, 1)},
        "depends on an input",
    ),
}


def run(model: Written, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return torch.compile(model, backend="qcompile", options={"rest": "eager", "measure": False, **options})(x), model(x)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_reason_is_said(name: str, dtype: torch.dtype) -> None:
    forward, tensors, reason = CASES[name]
    torch.manual_seed(5)
    model = Written(forward, tensors())
    got, want = run(model, torch.randn(3, K).to(dtype))
    (row,) = qcompile.report().sites
    assert row.kernel is None and row.declined
    assert reason in row.declined
    assert torch.equal(got, want)


REFERENCE: dict[str, Any] = {"rest": "eager", "kernels": ["reference"]}
FLOATS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float64"]


@pytest.mark.parametrize("name", FLOATS)
def test_scales_of_any_float_may_change(name: str) -> None:
    """Also to NaN, of which those dtypes have no operator that tells."""
    dtype = getattr(torch, name)
    torch.manual_seed(5)
    tensors = {"q": nibbles(uint4()), "s": (torch.rand(N, K // G) + 0.5).to(dtype)}

    def forward(m: Any, x: Tensor) -> Tensor:
        codes = torch.stack((m.q & 15, m.q >> 4), -1).reshape(N, K).float() - 8
        return linear(x, groups(codes, m.s))

    model, x = Written(forward, tensors), torch.randn(3, K)
    compiled = torch.compile(model, backend="qcompile", options=REFERENCE)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(compiled(x), model(x))
        assert [row.kernel for row in qcompile.report().sites] == ["reference.quantized_linear"]
        scales: Any = model.s
        scales.copy_((scales.float() * 2).to(dtype))
        torch.testing.assert_close(compiled(x), model(x))
        scales.copy_(torch.full_like(scales, float("nan"), dtype=F32).to(dtype))
        assert bool(model(x).isnan().all()) and bool(compiled(x).isnan().all())
