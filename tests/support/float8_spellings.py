"""Ways to write the dequantization of FP8 weights: casts, views of bytes, arithmetic on bits, tables; scales of every shape."""

from collections.abc import Callable
from typing import Any

import torch
from support.spellings import BF16, F16, F32, G, K, N, Spelling, linear
from torch import Tensor

E4M3, E5M2, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu
ROWS, SHORT = 16, 80  # outputs of a block; K of which groups of 32 leave 16


def numbers(n: int = N, k: int = K, dtype: torch.dtype = E4M3) -> Tensor:
    """Normal numbers as a quantizer leaves them: the largest of each row is the largest that there is, some are subnormal."""
    wide = torch.randn(n, k)
    wide = wide / wide.abs().amax(1, keepdim=True) * (448.0 if dtype is E4M3 else 57344.0)
    wide[:, 0] = 2.0**-8
    return wide.to(dtype)


def steps(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return (torch.rand(shape) * 1e-3 + 1e-4).to(dtype)


def _made(scales: Callable[[], Tensor], dtype: torch.dtype = E4M3, k: int = K) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"w": numbers(N, k, dtype), "s": scales()}


def _scaled(m: Any, x: Tensor) -> Tensor:
    return linear(x, m.w.to(x.dtype) * m.s.to(x.dtype))


def _scaled_wide(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.w.to(F32) * m.s).to(x.dtype))


def _groups(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.w.to(F32).unflatten(1, (-1, G)) * m.s[..., None]).flatten(1).to(x.dtype))


def _blocks_repeated(m: Any, x: Tensor) -> Tensor:
    scales = m.s.repeat_interleave(ROWS, 0).repeat_interleave(G, 1)
    return linear(x, (m.w.to(F32) * scales).to(x.dtype))


def _blocks_narrow(m: Any, x: Tensor) -> Tensor:
    """The blocks are expanded and then rounded, so that no tensor of the size of the scales holds what they become."""
    scales = m.s.repeat_interleave(ROWS, 0).repeat_interleave(G, 1)[: m.w.shape[0], : m.w.shape[1]]
    return linear(x, m.w.to(x.dtype) * scales.to(x.dtype))


def _blocks_of_20(m: Any, x: Tensor) -> Tensor:
    scales = m.s.repeat_interleave(20, 0).repeat_interleave(G, 1)[:N]
    return linear(x, (m.w.to(F32) * scales).to(x.dtype))


def _blocks_by_views(m: Any, x: Tensor) -> Tensor:
    blocks = m.w.to(F32).view(N // ROWS, ROWS, K // G, G) * m.s[:, None, :, None]
    return linear(x, blocks.view(N, K).to(x.dtype))


def _blocks_by_index(m: Any, x: Tensor) -> Tensor:
    rows, columns = torch.arange(N) // ROWS, torch.arange(K) // G
    return linear(x, (m.w.to(F32) * m.s[rows][:, columns]).to(x.dtype))


def _exponents(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.w.to(F32).view(N, -1, G) * torch.exp2(m.s.float() - 127)[..., None]).view(N, K).to(x.dtype))


def _exponents_seen(m: Any, x: Tensor) -> Tensor:
    scales = m.s.view(E8M0).to(x.dtype)
    return linear(x, (m.w.to(x.dtype).view(N, -1, G) * scales[..., None]).view(N, K))


def _bit_fields(m: Any, x: Tensor) -> Tensor:
    """E4M3 from its sign, four exponent bits and three of mantissa."""
    exponent, mantissa = (m.p >> 3 & 15).to(torch.int32), (m.p & 7).to(F32)
    size = torch.where(exponent == 0, mantissa / 512, (1 + mantissa / 8) * torch.exp2(exponent.to(F32) - 7))
    return linear(x, (torch.where(m.p >= 128, -size, size) * m.s).to(x.dtype))


def _of_bytes(scales: Callable[[], Tensor], **more: Tensor) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"p": numbers().view(torch.uint8), "s": scales(), **more}


def _finite_table() -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(E4M3).to(F32).nan_to_num(0.0)


def _spelling(name: str, forward: Callable[..., Tensor], tensors: Callable[[], dict[str, Tensor]], **more: Any) -> Spelling:
    return Spelling(name, forward, tensors, **{"codebook": "e4m3", **more})


FLOAT8 = (
    _spelling("fp8, tensor, wide", _scaled_wide, _made(steps)),
    _spelling("fp8, tensor of one element", _scaled, _made(lambda: steps(1, dtype=BF16))),
    _spelling("fp8, channel", _scaled, _made(lambda: steps(N, 1, dtype=BF16))),
    _spelling("fp8, channel rounded on the way", _scaled, _made(lambda: steps(N, 1))),
    _spelling("fp8, channel in float16", _scaled, _made(lambda: steps(N, 1, dtype=F16)), dtype=F16),
    _spelling("fp8, channel in float32", _scaled_wide, _made(lambda: steps(N, 1)), dtype=F32),
    _spelling("fp8, scale after", lambda m, x: linear(x, m.w.to(x.dtype)) * m.s, _made(lambda: steps(N, dtype=BF16))),
    _spelling("fp8, tensor scale after", lambda m, x: linear(x, m.w.to(x.dtype)) * m.s, _made(lambda: steps(1, dtype=BF16))),
    _spelling("fp8, no scale", lambda m, x: linear(x, m.w.to(x.dtype)), lambda: {"w": numbers()}),
    _spelling("fp8, divided", lambda m, x: linear(x, (m.w.to(F32) / m.s).to(x.dtype)), _made(lambda: 1.0 / steps(N, 1))),
    _spelling("fp8, groups", _groups, _made(lambda: steps(N, K // G)), group=G),
    _spelling("fp8, blocks repeated", _blocks_repeated, _made(lambda: steps(N // ROWS, K // G)), group=G),
    _spelling("fp8, blocks narrow", _blocks_narrow, _made(lambda: steps(N // ROWS, K // G)), group=G),
    _spelling("fp8, short blocks", _blocks_narrow, _made(lambda: steps(3, 3), k=SHORT), group=G, shape=(6, SHORT)),
    _spelling("fp8, blocks of 20 rows", _blocks_of_20, _made(lambda: steps(3, K // G)), group=G),
    _spelling("fp8, blocks by views", _blocks_by_views, _made(lambda: steps(N // ROWS, K // G)), group=G),
    _spelling("fp8, blocks by index", _blocks_by_index, _made(lambda: steps(N // ROWS, K // G)), group=G),
    _spelling(
        "fp8 stored [K, N]", lambda m, x: x @ (m.w.to(x.dtype) * m.s), lambda: {"w": numbers(K, N), "s": steps(N, dtype=BF16)}
    ),
    _spelling("e5m2, channel", _scaled_wide, _made(lambda: steps(N, 1), E5M2), codebook="e5m2"),
    _spelling("e5m2, groups, float32", _groups, _made(lambda: steps(N, K // G), E5M2), group=G, dtype=F32, codebook="e5m2"),
    _spelling(
        "mxfp8, exponents", _exponents, lambda: {"w": numbers(), "s": torch.randint(110, 120, (N, 2)).to(torch.uint8)}, group=G
    ),
    _spelling(
        "mxfp8, exponents seen",
        _exponents_seen,
        lambda: {"w": numbers(), "s": torch.randint(110, 120, (N, 2)).to(torch.uint8)},
        group=G,
    ),
    _spelling(
        "fp8 seen in bytes", lambda m, x: linear(x, (m.p.view(E4M3).to(F32) * m.s).to(x.dtype)), _of_bytes(lambda: steps(N, 1))
    ),
    _spelling("fp8 by bits", _bit_fields, _of_bytes(lambda: steps(N, 1))),
    _spelling(
        "fp8 by table",
        lambda m, x: linear(x, (m.table[m.p.long()] * m.s).to(x.dtype)),
        lambda: {"p": numbers().view(torch.uint8), "s": steps(N, 1), "table": _finite_table()},
    ),
)
