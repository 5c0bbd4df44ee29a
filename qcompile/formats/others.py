"""Formats that other distributions bring: their readers, found as entry points. One that fails costs itself, with a reason.

An entry point of the group names a module with `propose(cone)`, like our own readers. What it proposes is looked at on tensors
without values before any weight is touched, and then compared by value like every other proposal.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from itertools import islice

import torch

from qcompile.errors import brief
from qcompile.formats.proposal import Cone, Proposal
from qcompile.meaning import Operands, QuantizedWeight
from qcompile.torch_internals.tensors import version

log = logging.getLogger(__name__)

GROUP = "qcompile.formats"
_MOST = 256  # proposals of one reader for one weight

Propose = Callable[[Cone], Iterator[Proposal]]
# What went wrong first with a reader, by its name.
_failed: dict[str, str] = {}


@cache
def readers(own: frozenset[str]) -> dict[str, Propose | str]:
    """By name the reader of each distribution's format, or why it cannot be used; own: names that are taken."""
    found: dict[str, Propose | str] = {}
    for point in entry_points(group=GROUP):
        if point.name in own or point.name in found:
            found[point.value] = f"the name {point.name} is taken"
        else:
            found[point.name] = _loaded(point)
    for name, reader in found.items():
        if isinstance(reader, str):
            log.warning("qcompile does without the format %s: %s", name, reader)
    return found


def _loaded(point: EntryPoint) -> Propose | str:
    try:
        propose: Propose = point.load().propose
    except Exception as error:  # a format that cannot even be imported is a reason, not a failure of the others
        return f"it cannot be loaded: {brief(error)}"
    return propose if callable(propose) else f"{point.value}.propose is no function"


def table(own: frozenset[str]) -> dict[str, str]:
    """Every format of another distribution: "" if it works as far as is known, else what is wrong."""
    return {name: reader if isinstance(reader, str) else _failed.get(name, "") for name, reader in readers(own).items()}


def proposals(cone: Cone, own: frozenset[str]) -> Iterator[tuple[str, Proposal]]:
    """(name, proposal) of every such reader: those that can be a weight of this size."""
    for name, reader in readers(own).items():
        if isinstance(reader, str):
            continue
        try:
            made = [_fitting(proposal, cone) for proposal in islice(reader(cone), _MOST)]
        except Exception as error:  # another distribution's bug must not take our own readers with it
            log.debug("the reader %s", name, exc_info=True)
            reason = f"it failed for a weight [{cone.n}, {cone.k}]: {brief(error)}"
            if _failed.setdefault(name, reason) is reason:
                log.warning("qcompile does without the format %s where it fails: %s", name, reason)
            continue
        yield from ((name, proposal) for proposal in made)


def _fitting(proposal: object, cone: Cone) -> Proposal:
    """The proposal, if what it unpacks is a weight of the cone as it says; raises what is wrong otherwise."""
    if not isinstance(proposal, Proposal):
        raise TypeError(f"propose gives {type(proposal).__name__}, not Proposal")
    numbers = (proposal.bits, proposal.group, proposal.outer_group)
    if not _is(proposal.format, str) or not all(type(number) is int for number in numbers):
        raise TypeError("format must be a text, and bits, group and outer_group must be integers")
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode do not count what is written to them
        leaves = [torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") for leaf in cone.leaves]
        operands = proposal.unpack(leaves)
    if not _is(operands, Operands):
        raise TypeError(f"unpack gives {type(operands).__name__}, not Operands")
    if any(version(leaf) for leaf in leaves):
        raise ValueError("unpack writes to its leaves")
    if any(item is not None for item in (operands.bias, operands.act_scale, operands.act_zero)):
        raise ValueError("unpack gives the weight alone, without bias and activation scales")
    said = (not proposal.symmetric, proposal.act_order, proposal.offset)
    has = (operands.zeros is not None, operands.perm is not None, operands.offsets is not None)
    if said != has:
        raise ValueError("symmetric, act_order and offset must say which of zeros, perm and offsets unpack gives")
    if tuple(operands.codes.shape) != (cone.n, cone.k):
        raise ValueError(f"unpack gives codes {list(operands.codes.shape)} of a weight [{cone.n}, {cone.k}]")
    perm = operands.perm
    if perm is not None and (tuple(perm.shape) != (cone.k,) or perm.is_floating_point()):
        raise ValueError(f"perm must be integers [{cone.k}], got {perm.dtype} {list(perm.shape)}")
    weight = QuantizedWeight(
        operands.codes,
        operands.scales,
        operands.zeros,
        proposal.bits,
        proposal.group,
        None,
        proposal.codebook,
        operands.outer,
        operands.offsets,
        operands.outer_offset,
        proposal.outer_group,
    )
    weight.check_form()
    return replace(proposal, rows=1)  # that rows share scales is not compared


def _is(value: object, kind: type) -> bool:
    """isinstance where annotations promise it, which nobody has checked in another distribution's code."""
    return isinstance(value, kind)
