"""Reads `qcompile::dequantize_packed`, whose arguments say everything: nothing is guessed."""

from collections.abc import Iterator

from qcompile.formats.layouts import LAYOUTS, Packing
from qcompile.formats.packed import proposal
from qcompile.formats.proposal import Cone, LeafIndex, Proposal
from qcompile.operators import dequantize_packed


def propose(cone: Cone) -> Iterator[Proposal]:
    """The one reading of a cone that is a single call of the front door's operator."""
    given = cone.arguments
    if cone.op is not dequantize_packed or given is None or given["layout"] not in LAYOUTS:
        return
    packing = Packing(given["bits"], given["group"], given["n"], given["k"], given.get("rows", 1))
    if packing.group <= 0 or (packing.n, packing.k) != (cone.n, cone.k):
        return
    packed, scales = _position(given["packed"]), _position(given["scales"])
    if packed is None or scales is None:
        return
    yield proposal(given["layout"], packing, packed, scales, _position(given.get("zeros")), _position(given.get("g_idx")))


def _position(argument: object) -> int | None:
    return argument.index if isinstance(argument, LeafIndex) else None
