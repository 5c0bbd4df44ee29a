"""The table of readers: each looks at a cone's leaves and proposes which quantized weight they may hold."""

from collections.abc import Iterator
from importlib import import_module

from qcompile.formats.proposal import Cone, Proposal

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


def proposals(cone: Cone) -> Iterator[tuple[str, Proposal]]:
    """(reader name, proposal) of every reader, in order."""
    for name, module in READERS.items():
        for proposal in import_module(module).propose(cone):
            yield name, proposal
