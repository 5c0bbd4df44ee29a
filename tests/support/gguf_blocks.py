"""Rows of GGUF blocks as quantized weights, by the block layouts of ggml (gguf 0.19, constants.py); little endian throughout."""

from collections.abc import Callable

import torch
from torch import Tensor

from qcompile.meaning import QuantizedWeight


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at a byte of every block: [N, blocks]."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0]


def _fields(data: Tensor, bits: int) -> Tensor:
    """[..., bytes] -> [..., 8 / bits, bytes]: field i of every byte, lowest bits first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (data[..., None, :] >> shifts[:, None]) & ((1 << bits) - 1)


def _nibbles(data: Tensor) -> Tensor:
    """[..., 16] -> [..., 32]: low nibbles are values 0 to 15, high ones 16 to 31."""
    return _fields(data, 4).flatten(-2)


def _bits_of_words(data: Tensor) -> Tensor:
    """[..., 4] -> [..., 32]: bit i of the word is of value i."""
    return _fields(data, 1).transpose(-1, -2).flatten(-2)


def _rows(codes: Tensor, least: int = 0) -> Tensor:
    return (codes.to(torch.int16) - least).to(torch.int8).flatten(1).contiguous()


def _simple(blocks: Tensor, bits: int, *, offset: bool) -> QuantizedWeight:
    """Blocks of 32: d, (m,) (high bits,) 16 bytes of nibbles."""
    at = 4 if offset else 2
    high = 4 if bits == 5 else 0
    codes = _nibbles(blocks[..., at + high :])
    if high:
        codes = codes | _bits_of_words(blocks[..., at : at + 4]) << 4
    scales, shift = _half(blocks, 0), _half(blocks, 2) if offset else None
    return QuantizedWeight(_rows(codes, 0 if offset else 1 << (bits - 1)), scales, None, bits, 32, offsets=shift)


def q8_0(blocks: Tensor) -> QuantizedWeight:
    return QuantizedWeight(blocks[..., 2:].contiguous().view(torch.int8).flatten(1), _half(blocks, 0), None, 8, 32)


def q2_k(blocks: Tensor) -> QuantizedWeight:
    """Scales (low nibble) and minima (high) of 16 groups, 64 bytes of 2-bit fields (32 bytes hold 128 values), d, dmin."""
    both = _fields(blocks[..., :16], 4)
    codes = _fields(blocks[..., 16:80].unflatten(-1, (2, 32)), 2)
    return _with_minima(codes, both[..., 0, :], both[..., 1, :], blocks, 80, bits=2, group=16)


def q3_k(blocks: Tensor) -> QuantizedWeight:
    """High bits, 2-bit fields, 6-bit scales - 32, d."""
    low = _fields(blocks[..., 32:96].unflatten(-1, (2, 32)), 2).flatten(-3)
    high = _fields(blocks[..., :32], 1).flatten(-2)
    four, two = _fields(blocks[..., 96:104], 4).flatten(-2), _fields(blocks[..., 104:108], 2).flatten(-2)
    inner = ((four | two << 4).to(torch.int16) - 32).to(torch.int8)
    outer = _half(blocks, 108)
    return QuantizedWeight(_rows(low | high << 2, 4), inner.flatten(1), None, 3, 16, outer=outer, outer_group=256)


def _six_bits(data: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of 8 groups in 12 bytes."""
    first, second, third = data[..., :4], data[..., 4:8], data[..., 8:]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), -1)
    minima = torch.cat((second & 63, third >> 4 | second >> 6 << 4), -1)
    return scales, minima


def q4_k(blocks: Tensor) -> QuantizedWeight:
    """d, dmin, 12 bytes of scales and minima, 128 bytes of nibbles (32 bytes hold 64 values)."""
    codes = _fields(blocks[..., 16:].unflatten(-1, (4, 32)), 4)
    return _with_minima(codes, *_six_bits(blocks[..., 4:16]), blocks, 0, bits=4, group=32)


def q5_k(blocks: Tensor) -> QuantizedWeight:
    """As Q4_K, with 32 bytes of high bits (bit g of a byte is of group g) before the nibbles."""
    low = _fields(blocks[..., 48:].unflatten(-1, (4, 32)), 4).flatten(-3, -2)
    codes = low | _fields(blocks[..., 16:48], 1) << 4
    return _with_minima(codes, *_six_bits(blocks[..., 4:16]), blocks, 0, bits=5, group=32)


def q6_k(blocks: Tensor) -> QuantizedWeight:
    """Low nibbles (64 bytes hold 128 values), 2-bit high fields (32 bytes for them), int8 scales, d."""
    low = _fields(blocks[..., :128].unflatten(-1, (2, 64)), 4).flatten(-2)
    high = _fields(blocks[..., 128:192].unflatten(-1, (2, 32)), 2).flatten(-2)
    inner = blocks[..., 192:208].contiguous().view(torch.int8)
    outer = _half(blocks, 208)
    return QuantizedWeight(_rows(low | high << 4, 32), inner.flatten(1), None, 6, 16, outer=outer, outer_group=256)


def _with_minima(
    codes: Tensor, scales: Tensor, minima: Tensor, blocks: Tensor, at: int, *, bits: int, group: int
) -> QuantizedWeight:
    """d * scale * code - dmin * minimum; d stands at byte `at`, dmin behind it."""
    return QuantizedWeight(
        _rows(codes),
        scales.flatten(1),
        None,
        bits,
        group,
        outer=_half(blocks, at),
        offsets=minima.flatten(1),
        outer_offset=-_half(blocks, at + 2),
        outer_group=256,
    )


# Name of the type -> (bytes of a block, values of a block, how rows of blocks [N, blocks, bytes] are read).
TYPES: dict[str, tuple[int, int, Callable[[Tensor], QuantizedWeight]]] = {
    "Q4_0": (18, 32, lambda blocks: _simple(blocks, 4, offset=False)),
    "Q4_1": (20, 32, lambda blocks: _simple(blocks, 4, offset=True)),
    "Q5_0": (22, 32, lambda blocks: _simple(blocks, 5, offset=False)),
    "Q5_1": (24, 32, lambda blocks: _simple(blocks, 5, offset=True)),
    "Q8_0": (34, 32, q8_0),
    "Q2_K": (84, 256, q2_k),
    "Q3_K": (110, 256, q3_k),
    "Q4_K": (144, 256, q4_k),
    "Q5_K": (176, 256, q5_k),
    "Q6_K": (210, 256, q6_k),
}
