"""Readings of the same weight in fewer bits, nearer to its zero points, or without a permutation, where its content allows that."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qcompile.formats.proposal import Proposal
from qcompile.meaning import Operands, in_groups, ungrouped

NARROW = 4  # codes of more bits stay in 8


class Extent:
    """What the parts of a weight have in common: in how few bits all codes fit, and whether the permutation moves nothing.

    centred_range: least and largest zero point that `centred` leaves, None where it cannot be used
    """

    def __init__(self, proposal: Proposal) -> None:
        self.proposal = proposal
        self.in_order = False
        self._bits = 1
        self._might = proposal.bits == 8 and not proposal.codebook and not proposal.offset
        self._seen = False
        self._zeros = (0, 0)
        self.centred_range: tuple[int, int] | None = None

    @property
    def narrow(self) -> int:
        """4 or fewer bits that an 8-bit container's codes fit (own code often stores int4 in int8), for `narrowed`; 0 if more."""
        return self._bits if self._might and self._seen else 0

    @property
    def zero_range(self) -> tuple[int, int]:
        """Least and largest zero point of the weight in so few bits."""
        return self._zeros

    def add(self, operands: Operands) -> None:
        """Look at some more rows."""
        self.in_order = is_in_order(operands)
        self._centre(operands)
        if not self._might or operands.codes.numel() == 0:
            return
        if operands.zeros is None:
            low, high = (int(item) for item in torch.aminmax(operands.codes))
            self._bits = max(self._bits, 1 + max(high, -low - 1).bit_length())
        else:
            codes, zeros = _shifted(operands.codes, operands.zeros, self.proposal.group)
            # A zero point may be one above the largest code.
            self._bits = max(self._bits, max(int(codes.max()), int(zeros.max()) - 1).bit_length())
            least, most = int(zeros.min()), int(zeros.max())
            self._zeros = (min(least, self._zeros[0]), max(most, self._zeros[1])) if self._seen else (least, most)
        self._might = self._bits <= NARROW
        self._seen = True

    def _centre(self, operands: Operands) -> None:
        integers = self.proposal.bits == 8 and not self.proposal.codebook and not self.proposal.offset
        if not integers or operands.zeros is None or operands.codes.numel() == 0:
            return
        _, zeros = _centred(operands.codes, operands.zeros, self.proposal.group)
        least, most = self.centred_range or (0, 0)
        self.centred_range = min(least, int(zeros.min())), max(most, int(zeros.max()))


def centred(proposal: Proposal, zero_range: tuple[int, int]) -> Proposal:
    """The same weight with codes as near to 0 as 8 bits allow; without zero points where none is left.

    Kernels add up code times x and take zero point times x off again. Of large codes near a large zero point little would be left
    of float32's digits: bytes 214 with zero point 213, kept as 86 and 85, lose seven bits of them.
    """
    symmetric = zero_range == (0, 0)

    def unpack(leaves: Sequence[Tensor]) -> Operands:
        operands = proposal.unpack(leaves)
        assert operands.zeros is not None
        codes, zeros = _centred(operands.codes, operands.zeros, proposal.group)
        return operands._replace(
            codes=ungrouped(codes, operands.codes.shape[1]).to(torch.int8), zeros=None if symmetric else zeros.to(torch.int8)
        )

    return replace(proposal, symmetric=symmetric, unpack=unpack)


def _centred(codes: Tensor, zeros: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(codes [N, G, group], zeros [N, G]) as int16, moved together so that the zero point is 0, or as near to it as int8 allows."""
    grouped, points = in_groups(codes.to(torch.int16), group), zeros.to(torch.int16)
    moved = torch.minimum(torch.maximum(points, grouped.amax(-1) - 127), grouped.amin(-1) + 128)
    moved = torch.where((points - moved).abs() > 127, 0, moved)
    return grouped - moved.unsqueeze(-1), points - moved


def narrowed(proposal: Proposal, bits: int) -> Proposal:
    """The same weight as codes of so few bits; with zero points both become unsigned, by one shift per group."""
    if proposal.symmetric:
        return replace(proposal, bits=bits)

    def unpack(leaves: Sequence[Tensor]) -> Operands:
        operands = proposal.unpack(leaves)
        assert operands.zeros is not None
        codes, zeros = _shifted(operands.codes, operands.zeros, proposal.group)
        return operands._replace(codes=ungrouped(codes, operands.codes.shape[1]).to(torch.int8), zeros=zeros.to(torch.int8))

    return replace(proposal, bits=bits, unpack=unpack)


def _shifted(codes: Tensor, zeros: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(codes [N, G, group], zeros [N, G]) as int16, shifted together so that the least of a group's codes and zero point is 0."""
    grouped, points = in_groups(codes.to(torch.int16), group), zeros.to(torch.int16)
    least = torch.minimum(grouped.amin(-1), points)
    return grouped - least.unsqueeze(-1), points - least


def is_in_order(operands: Operands) -> bool:
    """Whether the permutation moves nothing: `in_order` can be used."""
    perm = operands.perm
    return perm is not None and torch.equal(perm.long(), torch.arange(perm.numel(), device=perm.device, dtype=torch.int64))


def in_order(proposal: Proposal) -> Proposal:
    """The same weight without its permutation."""
    return replace(proposal, act_order=False, unpack=lambda leaves: proposal.unpack(leaves)._replace(perm=None))
