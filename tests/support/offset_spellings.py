"""Ways to write a dequantization with real offsets, with scales of two levels and of few bits; and what only looks like one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from support.spellings import BF16, F16, F32, G, K, N, Spelling, int4, linear, scale, uint4
from torch import Tensor

GROUPS = K // G


def _offsets(dtype: torch.dtype = BF16) -> Tensor:
    return (torch.randn(N, GROUPS) * 0.05).to(dtype)


def _points(most: float = 15.0) -> Tensor:
    """Zero points that are no integers."""
    return torch.rand(N, GROUPS) * most


def _unsigned(bits: int) -> Tensor:
    codes = torch.randint(0, 1 << bits, (N, K), dtype=torch.uint8)
    if 1 << bits <= K:
        codes[:, : 1 << bits] = torch.arange(1 << bits, dtype=torch.uint8)
    return codes


def _signed(bits: int) -> Tensor:
    return (_unsigned(bits).to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def _groups(q: Tensor) -> Tensor:
    return q.float().reshape(N, -1, G)


def _out(values: Tensor, x: Tensor) -> Tensor:
    return linear(x, values.reshape(N, K).to(x.dtype))


def _plus_offset(m: Any, x: Tensor) -> Tensor:
    return _out(_groups(m.q) * m.s.float()[..., None] + m.o.float()[..., None], x)


def _less_offset(m: Any, x: Tensor) -> Tensor:
    return _out(_groups(m.q) * m.s.float()[..., None] - m.o.float()[..., None], x)


def _less_point(m: Any, x: Tensor) -> Tensor:
    return _out((_groups(m.q) - m.z.float()[..., None]) * m.s.float()[..., None], x)


def _point_times_scale(m: Any, x: Tensor) -> Tensor:
    s, z = m.s.float(), m.z.float()
    return _out(_groups(m.q) * s[..., None] - (z * s)[..., None], x)


def _middle_and_offset(m: Any, x: Tensor) -> Tensor:
    """Of tinygemm: scale * (code - 8) + zero."""
    return _out((_groups(m.q) - 8) * m.s.float()[..., None] + m.o.float()[..., None], x)


def _fused(m: Any, x: Tensor) -> Tensor:
    return _out(torch.addcmul(m.o.float()[..., None], _groups(m.q), m.s.float()[..., None]), x)


def _by_rows(m: Any, x: Tensor) -> Tensor:
    """Of HQQ: one row for each group, scale and zero point in columns."""
    return _out((m.q.reshape(-1, G).to(x.dtype) - m.z.reshape(-1, 1).to(x.dtype)) * m.s.reshape(-1, 1).to(x.dtype), x)


def _channel(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.q.to(F32) * m.s + m.o).to(x.dtype))


def _half(m: Any, x: Tensor) -> Tensor:
    return _out((_groups(m.q) - 1.5) * m.s.float()[..., None], x)


def _two_values(m: Any, x: Tensor) -> Tensor:
    return _out((_groups(m.q) - 0.5) * m.s.float()[..., None], x)


def _plain(m: Any, x: Tensor) -> Tensor:
    return _out(_groups(m.q) * m.s.float()[..., None], x)


def _k_quant(m: Any, x: Tensor) -> Tensor:
    """Two levels for both: d * scale * code - dmin * minimum."""
    scales, minima = m.d.float() * m.sc.float(), m.dmin.float() * m.mn.float()
    return _out(_groups(m.q) * scales[..., None] - minima[..., None], x)


def _integers_times_float(m: Any, x: Tensor) -> Tensor:
    return _out(m.q.to(torch.int32).reshape(N, -1, G) * m.sc.to(torch.int32)[..., None] * m.d.float()[..., None], x)


def _k_tensors(bits: int) -> dict[str, Tensor]:
    inner = {name: torch.randint(1, 64, (N, GROUPS), dtype=torch.uint8) for name in ("sc", "mn")}
    return {"q": _unsigned(bits), **inner, "d": scale(N, 1, dtype=F16) / 8, "dmin": scale(N, 1, dtype=F16) / 8}


def _tensors(codes: Callable[[], Tensor], **others: Callable[[], Tensor]) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"q": codes(), "s": scale(N, GROUPS), **{name: make() for name, make in others.items()}}


def _of_channel() -> dict[str, Tensor]:
    return {"q": uint4(), "s": scale(N, 1, dtype=F32), "o": torch.randn(N, 1)}


OFFSETS = (
    Spelling("offset added", _plus_offset, _tensors(uint4, o=_offsets), 4, G, offset=True),
    Spelling("offset added, f32", _plus_offset, _tensors(uint4, o=partial(_offsets, F32)), 4, G, dtype=F32, offset=True),
    Spelling("offset that hides codes", _plus_offset, _tensors(uint4, o=lambda: _offsets() * 200), 4, G, offset=True),
    Spelling("offset taken off", _less_offset, _tensors(uint4, o=partial(_offsets, F16)), 4, G, dtype=F16, offset=True),
    Spelling("float zero point", _less_point, _tensors(uint4, z=_points), 4, G, offset=True),
    Spelling("float zero point times scale", _point_times_scale, _tensors(uint4, z=_points), 4, G, dtype=F32, offset=True),
    Spelling("tinygemm", _middle_and_offset, _tensors(uint4, o=_offsets), 4, G, False, offset=True),
    Spelling("offset and product in one", _fused, _tensors(uint4, o=_offsets), 4, G, dtype=F32, offset=True),
    Spelling("rows of groups", _by_rows, _tensors(uint4, z=lambda: _points().to(BF16)), 4, G, dtype=F32, offset=True),
    Spelling("offset per channel", _channel, _of_channel, 4, K, dtype=F32, offset=True),
    Spelling("3 bit and offset", _plus_offset, _tensors(partial(_unsigned, 3), o=_offsets), 3, G, offset=True),
    Spelling("6 bit and offset", _plus_offset, _tensors(partial(_unsigned, 6), o=_offsets), 6, G, dtype=F32, offset=True),
    Spelling("8 bit and offset", _plus_offset, _tensors(partial(_unsigned, 8), o=_offsets), 8, G, False, dtype=F32, offset=True),
    Spelling("2 bit around 1.5", _half, _tensors(partial(_unsigned, 2)), 2, G, offset=True),
    Spelling("1 bit, two values", _two_values, _tensors(partial(_unsigned, 1)), 1, G, offset=True),
)
FEW_BITS = (
    Spelling("1 bit", _plain, _tensors(partial(_signed, 1)), 1, G),
    Spelling("2 bit", _plain, _tensors(partial(_signed, 2)), 2, G),
    Spelling("3 bit", _plain, _tensors(partial(_signed, 3)), 3, G, dtype=F32),
    Spelling("ternary", _plain, _tensors(lambda: _unsigned(2).to(torch.int8) % 3 - 1), 2, G),
)
TWO_LEVELS = (
    Spelling("k-quant of 4 bits", _k_quant, partial(_k_tensors, 4), 4, G, offset=True, two_level=True),
    Spelling("k-quant of 2 bits", _k_quant, partial(_k_tensors, 2), 2, G, dtype=F32, offset=True, two_level=True),
    Spelling(
        "integers times float16",
        _integers_times_float,
        lambda: {"q": int4(), "sc": torch.randint(-32, 32, (N, GROUPS), dtype=torch.int8), "d": scale(N, 1, dtype=F16)},
        4,
        G,
        two_level=True,
    ),
)
WITH_OFFSETS = (*OFFSETS, *FEW_BITS, *TWO_LEVELS)


def _varies(m: Any, x: Tensor) -> Tensor:
    """The offset grows inside each group."""
    ramp = torch.arange(G) * 1e-3
    return _out(_groups(m.q) * m.s.float()[..., None] + m.o.float()[..., None] + ramp, x)


def _one_apart(m: Any, x: Tensor) -> Tensor:
    apart = torch.zeros(N, K)
    apart[3, 5] = 0.02
    return _out(_groups(m.q) * m.s.float()[..., None] + m.o.float()[..., None] + apart.reshape(N, -1, G), x)


def _by_column(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.q.float() * m.s.float().repeat_interleave(G, 1) + m.c).to(x.dtype))


def _clamped(m: Any, x: Tensor) -> Tensor:
    return _out((_groups(m.q) * m.s.float()[..., None] + m.o.float()[..., None]).clamp(min=-0.05), x)


def _squared(m: Any, x: Tensor) -> Tensor:
    values = _groups(m.q)
    return _out((values + values.square() * 1e-3) * m.s.float()[..., None] + m.o.float()[..., None], x)


def _scale_a_bit_off(m: Any, x: Tensor) -> Tensor:
    """Every second value has a scale that is 2^-16 larger, which 16 bits hide."""
    factor = 1 + (torch.arange(G) % 2) * 2.0**-16
    return _out(_groups(m.q) * (m.s.float()[..., None] * factor) + m.o.float()[..., None], x)


def _rounded_between(m: Any, x: Tensor) -> Tensor:
    """The product is rounded to float8 before the offset is added."""
    product = (_groups(m.q) * m.s.float()[..., None]).to(torch.float8_e4m3fn).float()
    return _out(product + m.o.float()[..., None], x)


def _sign_of_code(m: Any, x: Tensor) -> Tensor:
    """The offset has the sign of the code."""
    values = _groups(m.q) - 8
    return _out(values * m.s.float()[..., None] + torch.sign(values) * m.o.float()[..., None], x)


def _where_large(m: Any, x: Tensor) -> Tensor:
    values = _groups(m.q)
    return _out(values * m.s.float()[..., None] + torch.where(values > 7, 1.0, 0.5) * m.o.float()[..., None], x)


def _half_groups(m: Any, x: Tensor) -> Tensor:
    """The offset of each group of 4 is another, by a number that stands nowhere."""
    steps = (torch.arange(K) // 4).float().sin() * 0.01
    return linear(x, (m.q.float() * m.s.float().repeat_interleave(G, 1) + steps).to(x.dtype))


def _small_noise(m: Any, x: Tensor) -> Tensor:
    return _out(_groups(m.q) * m.s.float()[..., None] + m.o.float()[..., None] + m.n.reshape(N, -1, G), x)


def _inner_by_column(m: Any, x: Tensor) -> Tensor:
    """The inner scale belongs to a column of the group, not to the group."""
    return _out(_groups(m.q) * m.i.float() * m.s.float()[..., None], x)


_USUAL = _tensors(uint4, o=_offsets)
# Name -> (forward, tensors): all of them are declined, and computed as they stand.
LOOK_ALIKES: dict[str, tuple[Callable[..., Tensor], Callable[[], dict[str, Tensor]]]] = {
    "an offset that varies inside a group": (_varies, _USUAL),
    "one value apart": (_one_apart, _USUAL),
    "an offset for each column": (_by_column, _tensors(uint4, c=lambda: torch.randn(K) * 0.05)),
    "clamped": (_clamped, _USUAL),
    "a square": (_squared, _USUAL),
    "a scale that is a bit off": (_scale_a_bit_off, _USUAL),
    "rounded in between": (_rounded_between, _USUAL),
    "an offset with the code's sign": (_sign_of_code, _USUAL),
    "an offset by the code's size": (_where_large, _USUAL),
    "finer offsets": (_half_groups, _USUAL),
    "noise that 16 bits hide": (_small_noise, _tensors(uint4, o=_offsets, n=lambda: torch.randn(N, K) * 1e-5)),
    "a scale for each column of a group": (_inner_by_column, _tensors(uint4, i=lambda: torch.arange(1, G + 1) * 0.37)),
}
