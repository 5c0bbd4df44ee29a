"""Readings of the same weight in fewer bits or without a permutation, where its content allows that."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qcompile.meaning import Operands
from qcompile.readers import Proposal


def fits_four_bits(operands: Operands, proposal: Proposal) -> bool:
    """Whether an 8-bit container holds 4-bit codes (own code often stores int4 in int8): `four_bits` can be used."""
    if proposal.bits != 8 or proposal.codebook or operands.codes.numel() == 0:
        return False
    if operands.zeros is None:
        low, high = torch.aminmax(operands.codes)
        return int(low) >= -8 and int(high) <= 7
    codes, zeros = _shifted(operands.codes, operands.zeros, proposal.group)
    return int(codes.max()) <= 15 and int(zeros.max()) <= 16


def four_bits(proposal: Proposal) -> Proposal:
    """The same weight as 4-bit codes; with zero points both become unsigned, by one shift per group."""
    if proposal.symmetric:
        return replace(proposal, bits=4)

    def unpack(leaves: Sequence[Tensor]) -> Operands:
        operands = proposal.unpack(leaves)
        assert operands.zeros is not None
        codes, zeros = _shifted(operands.codes, operands.zeros, proposal.group)
        return operands._replace(codes=codes.flatten(1).to(torch.int8), zeros=zeros.to(torch.int8))

    return replace(proposal, bits=4, unpack=unpack)


def _shifted(codes: Tensor, zeros: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(codes [N, G, group], zeros [N, G]) as int16, shifted together so that the least of a group's codes and zero point is 0."""
    grouped, points = codes.to(torch.int16).unflatten(1, (-1, group)), zeros.to(torch.int16)
    least = torch.minimum(grouped.amin(-1), points)
    return grouped - least.unsqueeze(-1), points - least


def is_in_order(operands: Operands) -> bool:
    """Whether the permutation moves nothing: `in_order` can be used."""
    perm = operands.perm
    return perm is not None and torch.equal(perm.long(), torch.arange(perm.numel(), device=perm.device))


def in_order(proposal: Proposal) -> Proposal:
    """The same weight without its permutation."""
    return replace(proposal, act_order=False, unpack=lambda leaves: proposal.unpack(leaves)._replace(perm=None))
