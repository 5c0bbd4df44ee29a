"""The table of readers: each looks at a cone's leaves and proposes which quantized weight they may hold."""

from collections.abc import Iterator
from importlib import import_module

from qcompile.formats import others
from qcompile.formats.proposal import Cone, Proposal
from qcompile.operators import dequantize_packed

FRONT_DOOR = "front_door"
# A reader's name in the report -> its module, tried in this order.
READERS = {
    FRONT_DOOR: "qcompile.recognize.own_operator",
    "compressed_tensors": "qcompile.formats.compressed_tensors",
    "gptq": "qcompile.formats.gptq",
    "awq": "qcompile.formats.awq",
    "plain_int8": "qcompile.formats.plain_int8",
    "float8": "qcompile.formats.float8",
}


# "lattice": what was recovered from values.
_TAKEN = frozenset({*READERS, "lattice"})


def proposals(cone: Cone) -> Iterator[tuple[str, Proposal]]:
    """(reader name, proposal) of every reader, in order; last those of other distributions."""
    for name, module in READERS.items():
        for proposal in import_module(module).propose(cone):
            yield name, proposal
    if cone.op is not dequantize_packed:
        yield from others.proposals(cone, _TAKEN)


def formats_of_others() -> dict[str, str]:
    """The formats that other distributions brought, each with what is wrong with it, or ""."""
    return others.table(_TAKEN)
