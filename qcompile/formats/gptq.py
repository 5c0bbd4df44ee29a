"""Proposes GPTQ readings: 2, 4 and 8 bits, zero points of version 1 and 2, with and without act-order."""

from collections.abc import Iterator

import torch

from qcompile.formats.layouts import Packing
from qcompile.formats.leaves import FLOATS, combinations, group_indices, indices
from qcompile.formats.packed import proposal
from qcompile.formats.proposal import Cone, Proposal


def propose(cone: Cone) -> Iterator[Proposal]:
    """For each width that fits qweight [K b / 32, N] and scales [G, N]: symmetric first, then every zero-point convention.

    A reading that leaves qzeros or g_idx out is right only for layers where they are trivial, so it must be checked by value for
    each layer, not once for all layers of a shape.
    """
    n, k = cone.n, cone.k
    for bits in (4, 8, 2):
        per_word = 32 // bits
        if k % per_word:
            continue
        for packed in indices(cone, lambda leaf: leaf.dtype == torch.int32 and leaf.shape == (k // per_word, n)):  # noqa: B023
            for scales in indices(cone, lambda leaf: leaf.dtype in FLOATS and len(leaf.shape) == 2 and leaf.shape[1] == n):
                groups = cone.leaves[scales].shape[0]
                if not groups or k % groups:
                    continue
                packing = Packing(bits, k // groups, n, k)
                stored = indices(cone, lambda leaf: leaf.dtype == torch.int32 and leaf.shape == (groups, n // per_word))  # noqa: B023
                for g_idx, zeros in combinations(group_indices(cone), [None, *(stored if n % per_word == 0 else [])]):
                    if packed in {g_idx, zeros}:
                        continue
                    for layout in ("gptq",) if zeros is None else ("gptq", "gptq_v2", "gptq_wrapped"):
                        yield proposal(layout, packing, packed, scales, zeros, g_idx)
