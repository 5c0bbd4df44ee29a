"""Codes of a few bits in words: `qcompile::unpack`, the one operator that takes them out, and what it does.

One operator for every layout that packs, so that graphs and recipes say in one line what happens. A range of its rows or columns
needs a range of the words' (`qcompile.graph.slice_rules`), so a wide weight is unpacked in strips.
"""

import torch
from torch import Tensor

# Column c of 8 of an AWQ word lies in nibble AWQ_PLACE[c].
AWQ_PLACE = (0, 4, 1, 5, 2, 6, 3, 7)

LIBRARY = torch.library.Library("qcompile", "FRAGMENT")
LIBRARY.define("unpack(Tensor words, *, int bits, int rows, int columns, int offset=0, str order='') -> Tensor")


def unpack_words(words: Tensor, bits: int, rows: int, columns: int) -> Tensor:
    """Words [rows, ceil(columns * bits / size of a word)] -> unsigned codes [rows, columns] (uint8), element i at bit i * bits.

    Dense: for 3, 5, 6 and 7 bits, in int32 words, a code may lie across two of them. Little-endian, as every platform here is.
    """
    if bits in {2, 4, 8}:
        # A clone, because contiguous() keeps the odd strides of a transposed row of length one, which view refuses.
        octets = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
        if bits == 8:
            return octets[:, :columns]
        pieces = [(octets >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        return torch.stack(pieces, dim=-1).reshape(rows, -1)[:, :columns]
    width = (columns * bits + 31) // 32
    padded = torch.nn.functional.pad(words, (0, -width % bits)).reshape(rows, (width + bits - 1) // bits, bits)
    parts: list[Tensor] = []
    for element in range(32):
        word, offset = divmod(element * bits, 32)
        low = min(bits, 32 - offset)
        code = (padded[:, :, word] >> offset) & ((1 << low) - 1)
        if low < bits:
            code = code | ((padded[:, :, word + 1] & ((1 << (bits - low)) - 1)) << low)
        parts.append(code.to(torch.uint8))
    return torch.stack(parts, dim=-1).reshape(rows, -1)[:, :columns]


def unpack_awq_words(words: Tensor, rows: int, columns: int) -> Tensor:
    """int32 [rows, columns / 8] in AWQ's nibble order -> unsigned codes [rows, columns] (uint8)."""
    parts = [((words >> (4 * place)) & 15).to(torch.uint8) for place in AWQ_PLACE]
    return torch.stack(parts, dim=-1).reshape(rows, columns)


def _require(words: Tensor, bits: int, rows: int, columns: int) -> None:
    if words.dim() != 2 or words.shape[0] != rows or words.shape[1] * words.itemsize * 8 < columns * bits:
        raise ValueError(f"words {list(words.shape)} of {words.dtype} do not hold [{rows}, {columns}] codes of {bits} bits")


def _unpack(words: Tensor, *, bits: int, rows: int, columns: int, offset: int = 0, order: str = "") -> Tensor:
    """The codes minus `offset`, int8 [rows, columns], contiguous; what does not fit wraps. order: "awq" or that of the bits."""
    _require(words, bits, rows, columns)
    codes = unpack_awq_words(words, rows, columns) if order == "awq" else unpack_words(words, bits, rows, columns)
    return (codes.contiguous() - offset % 256).view(torch.int8)


def _unpack_fake(words: Tensor, *, bits: int, rows: int, columns: int, offset: int = 0, order: str = "") -> Tensor:
    _require(words, bits, rows, columns)
    return words.new_empty((rows, columns), dtype=torch.int8)


LIBRARY.impl("unpack", _unpack, "CompositeExplicitAutograd")
torch.library.register_fake("qcompile::unpack", _unpack_fake, lib=LIBRARY)
unpack = torch.ops.qcompile.unpack.default
