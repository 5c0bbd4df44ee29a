"""Proposes AWQ (gemm) readings: 4 bits, packed along N in AWQ's order, true zero points."""

from collections.abc import Iterator

import torch

from qcompile.formats.layouts import Packing
from qcompile.formats.leaves import FLOATS, indices
from qcompile.formats.packed import proposal
from qcompile.formats.proposal import Cone, Proposal


def propose(cone: Cone) -> Iterator[Proposal]:
    """Every qweight [K, N / 8] with scales [G, N], with and without qzeros [G, N / 8]."""
    n, k = cone.n, cone.k
    if n % 8:
        return
    for packed in indices(cone, lambda leaf: leaf.dtype == torch.int32 and leaf.shape == (k, n // 8)):
        for scales in indices(cone, lambda leaf: leaf.dtype in FLOATS and len(leaf.shape) == 2 and leaf.shape[1] == n):
            groups = cone.leaves[scales].shape[0]
            if not groups or k % groups:
                continue
            packing = Packing(4, k // groups, n, k)
            stored = indices(cone, lambda leaf: leaf.dtype == torch.int32 and leaf.shape == (groups, n // 8))  # noqa: B023
            for zeros in [None, *stored]:
                if zeros != packed:
                    yield proposal("awq", packing, packed, scales, zeros)
