"""Our weights as rows of ggml's blocks, without a change of any code or scale.

https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block_q4_0, _q8_0, _q4_K, _q6_K, _mxfp4, _nvfp4)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.peers.peer import UnfitError, need_plain
from qcompile.meaning import QuantizedWeight

GROUP = 32
SUPER = 256  # values of K in a block of a k-quant
NVFP4_BLOCK = 64  # values of K: four groups


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """type: of enum ggml_type; rows: uint8 [N, bytes]; factor: what every result is multiplied with afterwards."""

    name: str
    type: int
    rows: Tensor
    factor: float = 1.0


def blocks_of(weight: QuantizedWeight) -> Blocks:
    """The weight in ggml's format for it. Raises UnfitError if there is none."""
    if weight.perm is not None or weight.zeros is not None:
        raise UnfitError("takes no order of columns and no integer zero points here")
    if weight.codebook:
        return _fp4(weight)
    if weight.outer is not None:
        return _k_quant(weight)
    need_plain(weight, 8 if weight.bits == 8 else 4, multiple=GROUP)
    if weight.bits == 4:
        return Blocks("Q4_0", 2, q4_0(weight.codes, weight.scales, weight.group))
    if weight.group != GROUP:
        raise UnfitError(f"takes 8-bit codes in groups of {GROUP}, got {weight.group}")
    return Blocks("Q8_0", 8, _joined(_bytes(weight.scales.half()), _grouped(weight.codes.view(torch.uint8), GROUP)))


def q4_0(codes: Tensor, scales: Tensor, group: int) -> Tensor:
    """uint8 [N, K / 32 * 18] of signed codes int8 [N, K] and scales [N, K / group], each repeated for its groups of 32."""
    repeated = scales.half().repeat_interleave(group // GROUP, dim=1)
    return _joined(_bytes(repeated), _halves(_grouped((codes + 8).byte(), GROUP)))


def _fp4(weight: QuantizedWeight) -> Blocks:
    kind = (weight.codebook, weight.group, weight.scales.dtype)
    codes, scales = weight.codes.byte(), weight.scales.view(torch.uint8)
    if kind == ("e2m1", 32, torch.float8_e8m0fnu) and weight.outer is None:
        return Blocks("MXFP4", 39, _joined(scales.unsqueeze(-1), _halves(_grouped(codes, 32))))
    outer = weight.outer
    if kind == ("e2m1", 16, torch.float8_e4m3fn) and outer is not None and bool((outer == outer.flatten()[0]).all()):
        _need_whole(weight, NVFP4_BLOCK)
        pairs = _halves(_grouped(codes, 16))
        return Blocks("NVFP4", 40, _joined(_grouped(scales, 4), pairs.unflatten(1, (-1, 4)).flatten(2)), float(outer.flatten()[0]))
    raise UnfitError(f"has no format for {weight.codebook} in groups of {weight.group} with {weight.scales.dtype} scales")


def _k_quant(weight: QuantizedWeight) -> Blocks:
    _need_whole(weight, SUPER)
    kinds: dict[tuple[int, int, bool], Callable[[QuantizedWeight], Blocks]] = {(4, 32, True): _q4_k, (6, 16, False): _q6_k}
    make = kinds.get((weight.bits, weight.group, weight.offsets is not None))
    if make is None or weight.outer_group != SUPER:
        raise UnfitError(f"has no format here for {weight.bits}-bit codes in groups of {weight.group} with two levels of scales")
    return make(weight)


def _q4_k(weight: QuantizedWeight) -> Blocks:
    """d, minimum (float16), 8 scales and 8 minima of 6 bits in 12 bytes, then 4 times 32 bytes of the codes of two groups."""
    assert weight.offsets is not None and weight.outer is not None and weight.outer_offset is not None
    scales, minima = (_grouped(level.byte(), 8) for level in (weight.scales, weight.offsets))
    first = [level[..., :4] | (level[..., 4:] >> 4 << 6) for level in (scales, minima)]
    last = (scales[..., 4:] & 15) | (minima[..., 4:] << 4)
    codes = _grouped(weight.codes.byte(), 64)
    pairs = _halves(codes).unflatten(1, (-1, 4)).flatten(2)
    return Blocks("Q4_K", 12, _joined(_bytes(weight.outer.half()), _bytes(-weight.outer_offset.half()), *first, last, pairs))


def _q6_k(weight: QuantizedWeight) -> Blocks:
    """Low 4 bits, high 2 bits, 16 signed scales, d (float16); of each half of the block, 32 values apart share a byte."""
    assert weight.outer is not None
    n = weight.n
    quarters = (weight.codes + 32).byte().reshape(n, -1, 2, 4, 32)  # blocks, halves, 32 values each
    low = torch.cat([(quarters[..., at, :] & 15) | (quarters[..., at + 2, :] << 4) for at in (0, 1)], dim=-1)
    high = sum(quarters[..., at, :] >> 4 << (2 * at) for at in range(4))
    assert isinstance(high, Tensor)
    scales = _grouped(weight.scales.to(torch.int8).view(torch.uint8), 16)
    return Blocks("Q6_K", 14, _joined(low.flatten(2), high.flatten(2), scales, _bytes(weight.outer.half())))


def _need_whole(weight: QuantizedWeight, block: int) -> None:
    if weight.k % block:
        raise UnfitError(f"takes K that is a multiple of {block}, got {weight.k}")


def _grouped(values: Tensor, count: int) -> Tensor:
    """[N, K] as [N, K / count, count]."""
    return values.reshape(len(values), -1, count)


def _halves(codes: Tensor) -> Tensor:
    """The first half of each group in the low four bits, the second half in the high ones."""
    half = codes.shape[-1] // 2
    return codes[..., :half] | (codes[..., half:] << 4)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().unsqueeze(-1).view(torch.uint8)


def _joined(*parts: Tensor) -> Tensor:
    """[N, blocks, bytes] of each, side by side in every block."""
    rows: Tensor = torch.cat(parts, dim=-1).flatten(1)
    return rows
