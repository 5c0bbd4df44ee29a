"""Readings of the same weight in fewer bits or without a permutation, where its content allows that."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qcompile.formats.proposal import Proposal
from qcompile.meaning import Operands


class Extent:
    """What the parts of a weight have in common: whether all codes fit 4 bits, and whether the permutation moves nothing."""

    def __init__(self, proposal: Proposal) -> None:
        self.proposal = proposal
        self.in_order = False
        self._might = proposal.bits == 8 and not proposal.codebook
        self._seen = False
        self._zeros = (0, 0)

    @property
    def fits_four_bits(self) -> bool:
        """Whether an 8-bit container holds 4-bit codes (own code often stores int4 in int8): `four_bits` can be used."""
        return self._might and self._seen

    @property
    def zero_range(self) -> tuple[int, int]:
        """Least and largest zero point of the weight in 4 bits."""
        return self._zeros

    def add(self, operands: Operands) -> None:
        """Look at some more rows."""
        self.in_order = is_in_order(operands)
        if not self._might or operands.codes.numel() == 0:
            return
        if operands.zeros is None:
            low, high = torch.aminmax(operands.codes)
            self._might = int(low) >= -8 and int(high) <= 7
        else:
            codes, zeros = _shifted(operands.codes, operands.zeros, self.proposal.group)
            self._might = int(codes.max()) <= 15 and int(zeros.max()) <= 16
            least, most = int(zeros.min()), int(zeros.max())
            self._zeros = (min(least, self._zeros[0]), max(most, self._zeros[1])) if self._seen else (least, most)
        self._seen = True


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
    return perm is not None and torch.equal(perm.long(), torch.arange(perm.numel(), device=perm.device, dtype=torch.int64))


def in_order(proposal: Proposal) -> Proposal:
    """The same weight without its permutation."""
    return replace(proposal, act_order=False, unpack=lambda leaves: proposal.unpack(leaves)._replace(perm=None))
