"""Proposes compressed-tensors readings: pack-quantized (2 to 8 bits, zero points packed or not), nvfp4- and mxfp4-pack-quantized.

int-quantized weights are plain int8 matrices; `plain_int8` proposes those.
"""

from collections.abc import Iterator

import torch

from qcompile.formats.layouts import MX_BLOCK, NVFP4_BLOCK, Packing
from qcompile.formats.leaves import FLOATS, combinations, group_indices, indices
from qcompile.formats.packed import proposal
from qcompile.formats.proposal import Cone, Leaf, Proposal


def propose(cone: Cone) -> Iterator[Proposal]:
    """Every width, scale, zero point and g_idx leaf whose shapes agree with a packed int32 or uint8 leaf."""
    yield from _integers(cone)
    yield from _nvfp4(cone)
    yield from _mxfp4(cone)


def words(count: int, bits: int) -> int:
    """int32 words that `count` densely packed values take."""
    return -(-count * bits // 32)


def _integers(cone: Cone) -> Iterator[Proposal]:
    n, k = cone.n, cone.k
    for bits in (4, 8, 2, 3, 5, 6, 7):
        for packed in indices(cone, lambda leaf: leaf.dtype == torch.int32 and leaf.shape == (n, words(k, bits))):  # noqa: B023
            for scales in indices(cone, lambda leaf: leaf.dtype in FLOATS):
                groups = _groups(cone.leaves[scales], n, k)
                if groups == 0:
                    continue
                packing = Packing(bits, k // groups, n, k)
                for layout, zeros in _zeros(cone, bits, groups):
                    for chosen, g_idx in combinations([zeros], group_indices(cone)):
                        if packed not in {chosen, g_idx}:
                            yield proposal(layout, packing, packed, scales, chosen, g_idx)


def _groups(scales: Leaf, n: int, k: int) -> int:
    """G of scales [N, G] or of one scale for the whole tensor; 0 if that shape cannot be scales."""
    if scales.shape in {(), (1,)}:
        return 1
    return (
        scales.shape[1] if len(scales.shape) == 2 and scales.shape[0] == n and scales.shape[1] and k % scales.shape[1] == 0 else 0
    )


def _zeros(cone: Cone, bits: int, groups: int) -> Iterator[tuple[str, int | None]]:
    n = cone.n
    yield "ct_pack", None
    for index, leaf in enumerate(cone.leaves):
        if leaf.dtype == torch.int32 and leaf.shape == (words(n, bits), groups):
            yield "ct_pack", index
        if leaf.dtype == torch.int8 and leaf.shape in {(n, groups), (1,)}:
            yield "ct_pack_plain_zeros", index


def _nvfp4(cone: Cone) -> Iterator[Proposal]:
    n, k = cone.n, cone.k
    if k % NVFP4_BLOCK:
        return
    packing = Packing(4, NVFP4_BLOCK, n, k)
    for packed in indices(cone, lambda leaf: leaf.dtype == torch.uint8 and leaf.shape == (n, k // 2)):
        for scales in indices(cone, lambda leaf: leaf.dtype == torch.float8_e4m3fn and leaf.shape == (n, k // NVFP4_BLOCK)):
            for divisor in [*indices(cone, lambda leaf: leaf.dtype in FLOATS and leaf.shape in {(), (1,)}), None]:
                yield proposal("nvfp4", packing, packed, scales, divisor)


def _mxfp4(cone: Cone) -> Iterator[Proposal]:
    n, k = cone.n, cone.k
    if k % MX_BLOCK:
        return
    for packed in indices(cone, lambda leaf: leaf.dtype == torch.uint8 and leaf.shape == (n, k // 2)):
        for scales in indices(cone, lambda leaf: leaf.dtype == torch.uint8 and leaf.shape == (n, k // MX_BLOCK)):
            yield proposal("mxfp4", Packing(4, MX_BLOCK, n, k), packed, scales)
