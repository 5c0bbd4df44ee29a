"""Unpacks every storage layout into the canonical operands, in straight-line torch code that also traces with fx proxies.

All sizes come from the arguments, never from a tensor's shape, because tracing passes proxies. Sources: the format descriptions of
compressed-tensors (pack-quantized, int-quantized, nvfp4-pack-quantized), GPTQ (qweight / qzeros / scales / g_idx) and AWQ (gemm).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qcompile.meaning import Operands

# Column c of 8 of an AWQ word lies in nibble AWQ_PLACE[c].
AWQ_PLACE = (0, 4, 1, 5, 2, 6, 3, 7)
NVFP4_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Packing:
    """Static facts of one packed weight [n, k]: codes of `bits` bits, one scale for each `group` values along K."""

    bits: int
    group: int
    n: int
    k: int

    @property
    def groups(self) -> int:
        return self.k // self.group


class Stored(NamedTuple):
    """The tensors of one packed weight as the checkpoint holds them (or the nodes that stand for them)."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    g_idx: Tensor | None = None


Unpack = Callable[[Stored, Packing], Operands]


def _is_meta(words: object) -> bool:
    return isinstance(words, Tensor) and words.is_meta  # while tracing it is a stand-in without values


def unpack_words(words: Tensor, bits: int, rows: int, columns: int) -> Tensor:
    """int32 [rows, ceil(columns * bits / 32)] -> unsigned codes [rows, columns] (uint8), element i at bit i * bits of its row.

    Dense: for 3, 5, 6 and 7 bits a code may lie across two words. Little-endian, as every platform here is.
    """
    if _is_meta(words):  # only its shape is wanted; PyTorch's shifts of meta tensors take a millisecond each
        return words.new_empty((rows, columns), dtype=torch.uint8)
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
        parts.append(code)
    return torch.stack(parts, dim=-1).reshape(rows, -1)[:, :columns].to(torch.uint8)


def unpack_awq_words(words: Tensor, rows: int) -> Tensor:
    """int32 [rows, C / 8] in AWQ's nibble order -> unsigned codes [rows, C] (uint8)."""
    if _is_meta(words):  # as above
        return words.new_empty((rows, words.shape[1] * 8), dtype=torch.uint8)
    parts = [((words >> (4 * place)) & 15).to(torch.uint8) for place in AWQ_PLACE]
    return torch.stack(parts, dim=-1).reshape(rows, -1)


def signed(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes (any integer dtype wide enough) minus 2^(bits-1), as int8."""
    if bits == 8:  # the same bits but for the highest one
        return (codes.to(torch.uint8) ^ 0x80).view(torch.int8)
    return codes.to(torch.int8) - (1 << (bits - 1))


def unsigned(codes: Tensor, bits: int) -> Tensor:
    """Signed int8 codes of fewer than 8 bits plus 2^(bits-1), as int8."""
    return codes.to(torch.int8) + (1 << (bits - 1))


def canonical(codes: Tensor, zeros: Tensor | None, bits: int) -> tuple[Tensor, Tensor | None]:
    """Unsigned codes and zero points in the convention of meaning.QuantizedWeight.

    Without zero points the stored offset is 2^(bits-1). With them and 8 bits both become signed, because 255 is no int8; a zero
    point of 256 is none either and wraps, which the check by value refuses.
    """
    if zeros is None:
        return signed(codes, bits), None
    if bits == 8:
        return signed(codes, 8), signed(zeros, 8)
    return codes.to(torch.int8), zeros.to(torch.int8)


def channel_scales(scales: Tensor, packing: Packing) -> Tensor:
    """Scales of one per group, one per channel or a single one -> [N, G]."""
    return scales.reshape(-1, packing.groups).expand(packing.n, packing.groups)


def order_of(g_idx: Tensor | None) -> Tensor | None:
    """The permutation that sorts columns by group: stored column r is original column perm[r]; int64 [K] or None."""
    return None if g_idx is None else torch.argsort(g_idx, stable=True)


def arranged(codes: Tensor, perm: Tensor | None) -> Tensor:
    return codes if perm is None else codes.index_select(1, perm)


def compressed_tensors_packed(stored: Stored, packing: Packing) -> Operands:
    """weight_packed int32 [N, ceil(K b / 32)], scales [N, G], zeros int32 packed along N [ceil(N b / 32), G]."""
    bits, n = packing.bits, packing.n
    codes = unpack_words(stored.packed, bits, n, packing.k)
    points = None if stored.zeros is None else unpack_words(stored.zeros.t(), bits, packing.groups, n).t()
    codes, points = canonical(codes, points, bits)
    perm = order_of(stored.g_idx)
    return Operands(arranged(codes, perm), channel_scales(stored.scales, packing), points, perm)


def compressed_tensors_packed_plain_zeros(stored: Stored, packing: Packing) -> Operands:
    """As above, but zeros are signed int8 [N, G] (or [1] for the whole tensor), not packed."""
    bits = packing.bits
    codes = signed(unpack_words(stored.packed, bits, packing.n, packing.k), bits)
    perm = order_of(stored.g_idx)
    return _signed_operands(arranged(codes, perm), channel_scales(stored.scales, packing), stored.zeros, perm, packing)


def compressed_tensors_int8(stored: Stored, packing: Packing) -> Operands:
    """weight int8 [N, K] with signed codes, scales [N, G], [N, 1] or [1], zeros int8 of the scales' shape."""
    perm = order_of(stored.g_idx)
    return _signed_operands(arranged(stored.packed, perm), channel_scales(stored.scales, packing), stored.zeros, perm, packing)


def _signed_operands(codes: Tensor, scales: Tensor, zeros: Tensor | None, perm: Tensor | None, packing: Packing) -> Operands:
    if zeros is None:
        return Operands(codes, scales, None, perm)
    points = channel_scales(zeros, packing).to(torch.int8)
    if packing.bits == 8:
        return Operands(codes, scales, points, perm)
    return Operands(unsigned(codes, packing.bits), scales, unsigned(points, packing.bits), perm)


def _gptq(stored: Stored, packing: Packing, added: int) -> Operands:
    bits, n, k = packing.bits, packing.n, packing.k
    codes = unpack_words(stored.packed.t(), bits, n, k)
    points = None
    if stored.zeros is not None:
        points = unpack_words(stored.zeros, bits, packing.groups, n).t().to(torch.int16) + added
    codes, points = canonical(codes, points, bits)
    perm = order_of(stored.g_idx)
    return Operands(arranged(codes, perm), stored.scales.t(), points, perm)


def gptq(stored: Stored, packing: Packing) -> Operands:
    """qweight int32 [K b / 32, N], scales [G, N], qzeros int32 [G, N b / 32] that hold the zero point minus one (version 1)."""
    return _gptq(stored, packing, 1)


def gptq_v2(stored: Stored, packing: Packing) -> Operands:
    """As version 1, but qzeros hold the zero point itself."""
    return _gptq(stored, packing, 0)


def gptq_wrapped(stored: Stored, packing: Packing) -> Operands:
    """As version 1, but a stored 2^bits - 1 means zero point 0: some implementations mask after adding one."""
    found = _gptq(stored, packing, 1)
    if found.zeros is None:
        return found
    low = -128 if packing.bits == 8 else 0
    mask = (1 << packing.bits) - 1
    return found._replace(zeros=(((found.zeros.to(torch.int16) - low) & mask) + low).to(torch.int8))


def awq(stored: Stored, packing: Packing) -> Operands:
    """qweight int32 [K, N / 8], scales [G, N], qzeros int32 [G, N / 8]; packed along N in AWQ's order, zero points are true."""
    codes = unpack_awq_words(stored.packed, packing.k).t()
    points = None if stored.zeros is None else unpack_awq_words(stored.zeros, packing.groups).t()
    codes, points = canonical(codes, points, 4)
    return Operands(codes, stored.scales.t(), points, order_of(stored.g_idx))


def nvfp4(stored: Stored, packing: Packing) -> Operands:
    """weight_packed uint8 [N, K / 2] of E2M1 codes, scales float8_e4m3fn [N, K / 16]; `zeros` is the global scale, a divisor."""
    codes = torch.stack((stored.packed & 15, stored.packed >> 4), dim=-1).reshape(packing.n, packing.k).to(torch.int8)
    block = stored.scales.to(torch.float32)
    return Operands(codes, block if stored.zeros is None else block / stored.zeros.to(torch.float32))


@dataclass(frozen=True, slots=True)
class Layout:
    """One storage layout: the name of its format for reports, how it is unpacked, and its code book ("" for integers)."""

    format: str
    unpack: Unpack
    codebook: str = ""


LAYOUTS: dict[str, Layout] = {
    "ct_pack": Layout("compressed-tensors pack-quantized", compressed_tensors_packed),
    "ct_pack_plain_zeros": Layout("compressed-tensors pack-quantized", compressed_tensors_packed_plain_zeros),
    "ct_int8": Layout("compressed-tensors int-quantized", compressed_tensors_int8),
    "gptq": Layout("gptq", gptq),
    "gptq_v2": Layout("gptq v2", gptq_v2),
    "gptq_wrapped": Layout("gptq, wrapped zero points", gptq_wrapped),
    "awq": Layout("awq", awq),
    "nvfp4": Layout("compressed-tensors nvfp4-pack-quantized", nvfp4, "e2m1"),
}
