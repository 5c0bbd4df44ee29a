"""A kernel to be timed: several copies of one packed weight, called in turn so that weights come from memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qcompile.errors import QCompileError
from qcompile.meaning import QuantizedWeight

COLD_BYTES = 96 << 20  # more than the last cache holds
OURS = "torch"


class UnfitError(QCompileError):
    """A library has no product for this weight."""


def as_it_is(x: Tensor) -> Any:
    return x


@dataclass(slots=True)
class Peer:
    """copies: each called with what `ready` makes of a bfloat16 x [M, K], once, before anything is timed.

    size: bytes it has to read; rounds: whether it rounds activations to 8 bit; pool: whose threads it runs on.
    """

    name: str
    copies: list[Callable[[Any], Tensor]]
    size: int
    rounds: bool
    ready: Callable[[Tensor], Any] = as_it_is
    pool: str = OURS
    at: int = 0

    def __call__(self, x: Any) -> Tensor:
        self.at = (self.at + 1) % len(self.copies)
        return self.copies[self.at](x)


def copies_of(size: int) -> int:
    return max(2, -(-COLD_BYTES // size))


def need_plain(weight: QuantizedWeight, bits: int, multiple: int = 1) -> None:
    """Only codes and scales, of so many bits, in groups that are a multiple of `multiple`."""
    if weight.bits != bits:
        raise UnfitError(f"takes {bits}-bit codes here, got {weight.bits}")
    if weight.zeros is not None or weight.perm is not None or weight.codebook:
        raise UnfitError("takes codes and scales here, without zero points, order and code book")
    if weight.group % multiple:
        raise UnfitError(f"takes groups that are a multiple of {multiple}, got {weight.group}")


def unsigned_pairs(weight: QuantizedWeight) -> Tensor:
    """uint8 [N, K / 2]: codes + 8, the even column in the low four bits."""
    codes = (weight.codes + 8).byte()
    return codes[:, 0::2] | (codes[:, 1::2] << 4)
