"""Unpacks every storage layout into the canonical operands, in straight-line torch code that also traces with fx proxies.

All sizes come from the arguments, never from a tensor's shape, because tracing passes proxies. Sources: the format descriptions of
compressed-tensors (pack-quantized, int-quantized, nvfp4- and mxfp4-pack-quantized), of GPTQ (qweight, qzeros, scales, g_idx) and of
AWQ (gemm).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qcompile.formats.words import unpack
from qcompile.meaning import Operands, group_count

NVFP4_BLOCK, MX_BLOCK = 16, 32


@dataclass(frozen=True, slots=True)
class Packing:
    """Static facts of one packed weight [n, k]: codes of `bits` bits, a scale for each `group` values of K and `rows` of N."""

    bits: int
    group: int
    n: int
    k: int
    rows: int = 1

    @property
    def groups(self) -> int:
        return group_count(self.k, self.group)


class Stored(NamedTuple):
    """The tensors of one packed weight as the checkpoint holds them (or the nodes that stand for them)."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    g_idx: Tensor | None = None


Unpack = Callable[[Stored, Packing], Operands]


def signed(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes (any integer dtype wide enough) minus 2^(bits-1), as int8."""
    if bits == 8:  # the same bits but for the highest one
        return (codes.to(torch.uint8) ^ 0x80).view(torch.int8)
    return codes.to(torch.int8) - (1 << (bits - 1))


def base_of(bits: int, zeros: object) -> int:
    """What is taken off unsigned codes and zero points in the convention of meaning.QuantizedWeight.

    Without zero points the stored offset is 2^(bits-1). With them and 8 bits both become signed, because 255 is no int8; a zero
    point of 256 is none either and wraps, which the check by value refuses.
    """
    return 1 << (bits - 1) if zeros is None or bits == 8 else 0


def channel_scales(scales: Tensor, packing: Packing) -> Tensor:
    """Scales of one per group, one per channel, a single one, or one for each block of `rows` x `group` -> [N, G]."""
    grid = scales.reshape(-1, packing.groups)
    if 1 < packing.rows < packing.n:
        grid = grid.repeat_interleave(packing.rows, 0)[: packing.n]
    return grid.expand(packing.n, packing.groups)


def order_of(g_idx: Tensor | None) -> Tensor | None:
    """The permutation that sorts columns by group: stored column r is original column perm[r]; int64 [K] or None."""
    return None if g_idx is None else torch.argsort(g_idx, stable=True)


def arranged(codes: Tensor, perm: Tensor | None) -> Tensor:
    return codes if perm is None else codes.index_select(1, perm)


def compressed_tensors_packed(stored: Stored, packing: Packing) -> Operands:
    """weight_packed int32 [N, ceil(K b / 32)], scales [N, G], zeros int32 packed along N [ceil(N b / 32), G]."""
    bits, n, zeros = packing.bits, packing.n, stored.zeros
    base = base_of(bits, zeros)
    codes = unpack(stored.packed, bits=bits, rows=n, columns=packing.k, offset=base)
    points = None if zeros is None else unpack(zeros.t(), bits=bits, rows=packing.groups, columns=n, offset=base).t()
    perm = order_of(stored.g_idx)
    return Operands(arranged(codes, perm), channel_scales(stored.scales, packing), points, perm)


def compressed_tensors_packed_plain_zeros(stored: Stored, packing: Packing) -> Operands:
    """As above, but zeros are signed int8 [N, G] (or [1] for the whole tensor), not packed."""
    codes = unpack(stored.packed, bits=packing.bits, rows=packing.n, columns=packing.k, offset=base_of(packing.bits, stored.zeros))
    perm = order_of(stored.g_idx)
    return Operands(arranged(codes, perm), channel_scales(stored.scales, packing), _plain_zeros(stored.zeros, packing), perm)


def compressed_tensors_int8(stored: Stored, packing: Packing) -> Operands:
    """weight int8 [N, K] with signed codes, scales [N, G], [N, 1] or [1], zeros int8 of the scales' shape."""
    perm = order_of(stored.g_idx)
    codes = arranged(stored.packed, perm)
    if stored.zeros is not None and packing.bits < 8:
        codes = unsigned(codes, packing.bits)
    return Operands(codes, channel_scales(stored.scales, packing), _plain_zeros(stored.zeros, packing), perm)


def float8(stored: Stored, packing: Packing) -> Operands:
    """weight float8_e4m3fn or float8_e5m2 [N, K], scales [N, G], [N, 1], [1], or [ceil(N / rows), G] of blocks."""
    perm = order_of(stored.g_idx)
    return Operands(arranged(stored.packed.view(torch.int8), perm), channel_scales(stored.scales, packing), None, perm)


def _plain_zeros(zeros: Tensor | None, packing: Packing) -> Tensor | None:
    if zeros is None:
        return None
    points = channel_scales(zeros, packing).to(torch.int8)
    return points if packing.bits == 8 else unsigned(points, packing.bits)


def unsigned(codes: Tensor, bits: int) -> Tensor:
    """Signed int8 codes of fewer than 8 bits plus 2^(bits-1), as int8."""
    return codes.to(torch.int8) + (1 << (bits - 1))


def _gptq(stored: Stored, packing: Packing, added: int) -> Operands:
    bits, n, k, zeros = packing.bits, packing.n, packing.k, stored.zeros
    base = base_of(bits, zeros)
    codes = unpack(stored.packed.t(), bits=bits, rows=n, columns=k, offset=base)
    points = None if zeros is None else unpack(zeros, bits=bits, rows=packing.groups, columns=n, offset=base - added).t()
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
    base = base_of(4, stored.zeros)
    codes, points = (
        None if words is None else unpack(words, bits=4, rows=rows, columns=packing.n, offset=base, order="awq").t()
        for words, rows in ((stored.packed, packing.k), (stored.zeros, packing.groups))
    )
    assert codes is not None
    return Operands(codes, stored.scales.t(), points, order_of(stored.g_idx))


def nvfp4(stored: Stored, packing: Packing) -> Operands:
    """weight_packed uint8 [N, K / 2] of E2M1 codes, scales float8_e4m3fn [N, K / 16]; `zeros` is the global scale, a divisor."""
    codes = unpack(stored.packed, bits=4, rows=packing.n, columns=packing.k)
    if stored.zeros is None:
        return Operands(codes, stored.scales)
    return Operands(codes, stored.scales, outer=(1.0 / stored.zeros.to(torch.float32)).reshape(1, 1).expand(packing.n, 1))


def nvfp4_scales(stored: Stored) -> Tensor:
    """The scales of `nvfp4` as float32 [N, K / 16], divided by the global one as compressed-tensors does it."""
    block = stored.scales.to(torch.float32)
    return block if stored.zeros is None else block / stored.zeros.to(torch.float32)


def mxfp4(stored: Stored, packing: Packing) -> Operands:
    """weight_packed uint8 [N, K / 2] of E2M1 codes, scales uint8 [N, K / 32] that are the bits of E8M0 numbers."""
    codes = unpack(stored.packed, bits=4, rows=packing.n, columns=packing.k)
    return Operands(codes, stored.scales.view(torch.float8_e8m0fnu))


def mxfp8(stored: Stored, packing: Packing) -> Operands:
    """weight float8_e4m3fn [N, K], scales uint8 [N, K / 32] that are the bits of E8M0 numbers."""
    return Operands(stored.packed.view(torch.int8), stored.scales.view(torch.float8_e8m0fnu))


def mx_scales(stored: Stored) -> Tensor:
    """The scales of `mxfp4` and `mxfp8` as float32 [N, K / 32]."""
    return stored.scales.view(torch.float8_e8m0fnu).to(torch.float32)


@dataclass(frozen=True, slots=True)
class Layout:
    """One storage layout: the name of its format for reports, how it is unpacked, and its code book ("" for integers).

    scales: float32 [N, G] as the library computes with them, where that is not what `unpack` gives
    """

    format: str
    unpack: Unpack
    codebook: str = ""
    scales: Callable[[Stored], Tensor] | None = None


LAYOUTS: dict[str, Layout] = {
    "ct_pack": Layout("compressed-tensors pack-quantized", compressed_tensors_packed),
    "ct_pack_plain_zeros": Layout("compressed-tensors pack-quantized", compressed_tensors_packed_plain_zeros),
    "ct_int8": Layout("compressed-tensors int-quantized", compressed_tensors_int8),
    "gptq": Layout("gptq", gptq),
    "gptq_v2": Layout("gptq v2", gptq_v2),
    "gptq_wrapped": Layout("gptq, wrapped zero points", gptq_wrapped),
    "awq": Layout("awq", awq),
    "nvfp4": Layout("compressed-tensors nvfp4-pack-quantized", nvfp4, "e2m1", nvfp4_scales),
    "ct_e4m3": Layout("compressed-tensors float-quantized", float8, "e4m3"),
    "mxfp4": Layout("compressed-tensors mxfp4-pack-quantized", mxfp4, "e2m1", mx_scales),
    "mxfp8": Layout("compressed-tensors mxfp8-quantized", mxfp8, "e4m3", mx_scales),
}
