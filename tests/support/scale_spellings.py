"""Ways to write a dequantization that only its values give away: code books, scales of scales, float8 scales, a short last group."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from support.spellings import BF16, F16, F32, G, K, N, Spelling, int4, int8, linear, nibbles, scale, uint4
from torch import Tensor

from qcompile.codebooks import CODE_BOOKS, E2M1

SHORT, ODD = 80, 83  # K of which groups of 32 leave 16 (and have a common divisor with it), and 19 (and have none)
E4M3, E5M2, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu
GROUPS = K // G


def table() -> Tensor:
    return torch.tensor(E2M1)


def book_codes() -> Tensor:
    """Packed indices of a code book of 16 entries; every one occurs, 0 and -0 too."""
    return nibbles(uint4())


def _indices(m: Any) -> Tensor:
    return torch.stack((m.p & 15, m.p >> 4), -1).reshape(N, -1, G).long()


def _looked_up(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.table[_indices(m)] * m.s[..., None]).reshape(N, K).to(x.dtype))


def _global_divides(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.table[_indices(m)] * (m.s.float() / m.g)[..., None]).reshape(N, K).to(x.dtype))


def _global_multiplies_last(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.table[_indices(m)] * m.s.float()[..., None] * m.g).reshape(N, K).to(x.dtype))


def _bit_fields(m: Any, x: Tensor) -> Tensor:
    """E2M1 from its sign, two exponent bits and one mantissa bit."""
    code = _indices(m)
    exponent, mantissa = (code >> 1) & 3, (code & 1).to(F32)
    size = torch.where(exponent == 0, mantissa * 0.5, (1 + mantissa * 0.5) * torch.exp2(exponent.to(F32) - 1))
    value = torch.where(code >= 8, -size, size)
    return linear(x, (value * m.s.to(F32)[..., None]).reshape(N, K).to(x.dtype))


def _scale_after_the_book(m: Any, x: Tensor) -> Tensor:
    return linear(x, m.table[_indices(m)].reshape(N, K).to(x.dtype)) * m.s


def _grouped(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.w.float().reshape(N, -1, G) * m.s.float()[..., None]).reshape(N, K).to(x.dtype))


def _two_levels(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.w.to(torch.int32) * m.inner[..., None] * m.outer[:, None, None].float()).reshape(N, K).to(x.dtype))


def _two_levels_turned(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.w.float() * m.outer[:, None, None] * m.inner.float().t()[..., None]).reshape(N, K).to(x.dtype))


def _two_levels_with_zeros(m: Any, x: Tensor) -> Tensor:
    codes = m.w.float() - m.z.float()[..., None]
    return linear(x, (codes * m.inner.float()[..., None] * m.outer[:, None, None]).reshape(N, K).to(x.dtype))


def _divided_twice(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.w.float() / m.outer[:, None, None] / m.inner.float()[..., None]).reshape(N, K).to(x.dtype))


def _repeated(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.w.float() * m.s.float().repeat_interleave(G, 1)[:, : x.shape[-1]]).to(x.dtype))


def _padded(m: Any, x: Tensor) -> Tensor:
    k = x.shape[-1]
    codes = torch.nn.functional.pad(m.w.float(), (0, -k % G)).reshape(N, -1, G)
    return linear(x, (codes * m.s.float()[..., None]).reshape(N, -1)[:, :k].to(x.dtype))


def _by_column(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.w.float() * m.s.float()[:, torch.arange(x.shape[-1]) // G]).to(x.dtype))


def _short_with_zeros(m: Any, x: Tensor) -> Tensor:
    zeros, scales = (item.float().repeat_interleave(G, 1)[:, : x.shape[-1]] for item in (m.z, m.s))
    return linear(x, ((m.w.float() - zeros) * scales).to(x.dtype))


def _short_book(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.table[m.w.long()] * m.s.repeat_interleave(G, 1)[:, : x.shape[-1]]).to(x.dtype))


def _blocks(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.w.float() * m.s.repeat_interleave(16, 0).repeat_interleave(G, 1)).to(x.dtype))


def _book(scales: Callable[[], Tensor], size: float = 1.0, name: str = "e2m1") -> Callable[[], dict[str, Tensor]]:
    return lambda: {"p": book_codes(), "s": scales(), "table": torch.tensor(CODE_BOOKS[name]), "g": torch.tensor([size])}


def _of_weights(dtype: torch.dtype) -> Tensor:
    """As large as the largest weights of a model: float16 holds the least entry of every code book as a normal number."""
    return (around_one(N, 2) / 8).to(dtype)


def _levels(inner: Callable[[], Tensor], outer: Callable[[], Tensor]) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"w": int4().reshape(N, GROUPS, G), "inner": inner(), "outer": outer()}


def small_integers(*shape: int) -> Tensor:
    return torch.randint(1, 64, shape, dtype=torch.int32)


def around_one(*shape: int) -> Tensor:
    return torch.rand(shape) * 0.5 + 0.25


def _short(dtype: torch.dtype = BF16, k: int = SHORT) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"w": int4(N, k), "s": scale(N, 3, dtype=dtype)}


def _zeros_and_short(k: int = SHORT) -> dict[str, Tensor]:
    return {"w": uint4(N, k), "s": scale(N, 3), "z": torch.randint(1, 15, (N, 3), dtype=torch.uint8)}


X_SHORT, X_ODD = (6, SHORT), (6, ODD)

BOOKS = (
    Spelling("e2m1, global divides", _global_divides, _book(lambda: (around_one(N, 2) * 400).to(E4M3), 2e4), 4, G, codebook="e2m1"),
    Spelling(
        "e2m1, global last",
        _global_multiplies_last,
        _book(lambda: (around_one(N, 2) * 400).to(E4M3), 5e-5),
        4,
        G,
        dtype=F32,
        codebook="e2m1",
    ),
    Spelling("e2m1 by bits, e8m0", _bit_fields, _book(lambda: (around_one(N, 2) / 64).to(E8M0)), 4, G, codebook="e2m1"),
    Spelling("e2m1, scale after", _scale_after_the_book, _book(lambda: scale(N)), 4, codebook="e2m1"),
    *(
        Spelling(f"{name}, {words}", _looked_up, _book(partial(_of_weights, dtype), name=name), 4, G, dtype=dtype, codebook=name)
        for name in ("nf4", "fp4", "iq4_nl")
        for words, dtype in (("bf16", BF16), ("fp16", F16), ("f32", F32))
    ),
    Spelling("e2m1, some groups 0", _global_divides, _book(lambda: torch.arange(N * 2.0).reshape(N, 2) % 3), 4, G, codebook="e2m1"),
)

SCALES = (
    Spelling(
        "e4m3 per channel",
        lambda m, x: linear(x, (m.w * m.s.float()).to(x.dtype)),
        lambda: {"w": int8(), "s": around_one(N, 1).to(E4M3)},
    ),
    Spelling("e4m3 groups", _grouped, lambda: {"w": int8(), "s": around_one(N, GROUPS).to(E4M3)}, 8, G),
    Spelling("e5m2 groups", _grouped, lambda: {"w": int8(), "s": around_one(N, GROUPS).to(E5M2)}, 8, G),
    Spelling("e8m0 groups", _grouped, lambda: {"w": int4(), "s": around_one(N, GROUPS).to(E8M0)}, 4, G),
    Spelling("float64 groups", _grouped, lambda: {"w": int8(), "s": around_one(N, GROUPS).double()}, 8, G),
    Spelling(
        "exponents in bytes",
        lambda m, x: linear(x, (m.w.float().view(N, -1, G) * torch.exp2(m.e.float() - 127)[..., None]).flatten(1).to(x.dtype)),
        lambda: {"w": int8(), "e": torch.randint(110, 120, (N, GROUPS), dtype=torch.uint8)},
        8,
        G,
    ),
    Spelling("one scale a group for all rows", _repeated, lambda: {"w": int8(), "s": scale(1, GROUPS)}, 8, G),
    Spelling("blocks of rows and columns", _blocks, lambda: {"w": int8(), "s": scale(N // 16, GROUPS)}, 8, G),
    Spelling(
        "half zero points",
        lambda m, x: linear(x, ((m.q.float() - 7.5) * m.s).to(x.dtype)),
        lambda: {"q": uint4(), "s": scale(N, 1)},
        4,
        offset=True,
    ),
)

LEVELS = (
    Spelling(
        "integer inner, fp16 outer",
        _two_levels,
        _levels(lambda: small_integers(N, GROUPS), lambda: scale(N, dtype=F16)),
        4,
        G,
        two_level=True,
    ),
    Spelling("outer first, inner turned", _two_levels_turned, _levels(lambda: around_one(GROUPS, N), lambda: scale(N)), 4, G),
    Spelling(
        "two levels and zero points",
        _two_levels_with_zeros,
        lambda: {
            "w": uint4().reshape(N, GROUPS, G),
            "z": torch.randint(1, 15, (N, GROUPS), dtype=torch.uint8),
            "inner": small_integers(N, GROUPS),
            "outer": scale(N, dtype=F32),
        },
        4,
        G,
        False,
        two_level=True,
    ),
    Spelling("divided by two scales", _divided_twice, _levels(lambda: around_one(N, GROUPS), lambda: 100 + around_one(N)), 4, G),
)

SHORT_GROUPS = (
    Spelling("short last group", _repeated, _short(), 4, 16, shape=X_SHORT),
    Spelling(
        "short last group, e4m3", _repeated, lambda: {"w": int8(N, SHORT), "s": around_one(N, 3).to(E4M3)}, 8, 16, shape=X_SHORT
    ),
    Spelling("short last group, padded codes", _padded, _short(F16), 4, 16, dtype=F16, shape=X_SHORT),
    Spelling("short last group by column", _by_column, _short(F32), 4, 16, dtype=F32, shape=X_SHORT),
    Spelling("short last group, zero points", _short_with_zeros, _zeros_and_short, 4, 16, False, shape=X_SHORT),
    Spelling("odd last group", _repeated, _short(k=ODD), 4, G, shape=X_ODD),
    Spelling("odd last group, 8 bit", _repeated, lambda: {"w": int8(N, ODD), "s": around_one(N, 3).to(E4M3)}, 8, G, shape=X_ODD),
    Spelling("odd last group, padded codes", _padded, _short(F16, ODD), 4, G, dtype=F16, shape=X_ODD),
    Spelling("odd last group by column", _by_column, _short(F32, ODD), 4, G, dtype=F32, shape=X_ODD),
    Spelling("odd last group, zero points", _short_with_zeros, lambda: _zeros_and_short(ODD), 4, G, False, shape=X_ODD),
    Spelling(
        "odd last group, e2m1",
        _short_book,
        lambda: {"w": uint4(N, ODD), "s": scale(N, 3), "table": table()},
        4,
        G,
        shape=X_ODD,
        codebook="e2m1",
    ),
)

BY_VALUE = (*BOOKS, *SCALES, *LEVELS, *SHORT_GROUPS)
