"""Builds a proposal from a storage layout and the positions of its tensors among the leaves."""

from collections.abc import Sequence

from torch import Tensor

from qcompile.formats.layouts import LAYOUTS, Packing, Stored
from qcompile.formats.proposal import Proposal
from qcompile.meaning import Operands


def proposal(
    layout: str, packing: Packing, packed: int, scales: int, zeros: int | None = None, g_idx: int | None = None
) -> Proposal:
    """A reading of the leaves at these positions in that layout; zeros None: symmetric, g_idx None: columns in order."""
    row = LAYOUTS[layout]

    def unpack(leaves: Sequence[Tensor]) -> Operands:
        points, order = (None if index is None else leaves[index] for index in (zeros, g_idx))
        return row.unpack(Stored(leaves[packed], leaves[scales], points, order), packing)

    return Proposal(
        format=row.format,
        bits=packing.bits,
        group=packing.group,
        unpack=unpack,
        symmetric=zeros is None or bool(row.codebook),
        act_order=g_idx is not None,
        codebook=row.codebook,
        rows=packing.rows,
    )
