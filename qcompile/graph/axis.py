"""A dimension of a graph's value that a label runs along, and which of its indices belong to a range of the label."""

from dataclasses import dataclass
from fractions import Fraction

from torch import fx


class UnknownError(Exception):
    """A range that cannot be followed through an operator."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A dimension that a label runs along.

    per     how many of its indices belong to one of the label's (1/8: eight of the label's lie in one index)
    start   the index at which the label begins; count: how many indices the whole label takes
    """

    dim: int
    per: Fraction = Fraction(1)
    start: int = 0
    count: int = 0

    def indices(self, span: range) -> range:
        """The indices of a range of the label that starts and ends at whole ones."""
        start, stop = self.start + self.per * span.start, self.start + self.per * span.stop
        if start.denominator != 1 or stop.denominator != 1:
            raise ValueError(f"a range {span.start}:{span.stop} does not start and end at whole indices of {self.per} each")
        return range(int(start), int(stop))

    def at(self, dim: int, ratio: Fraction | int = 1) -> "Axis":
        """The same range along another dimension, which has `ratio` times as many indices."""
        start, count = self.start * Fraction(ratio), self.count * Fraction(ratio)
        if start.denominator != 1 or count.denominator != 1:
            raise UnknownError
        return Axis(dim, self.per * ratio, int(start), int(count))

    def covers(self, size: int) -> bool:
        """Whether the label takes a whole dimension of that size."""
        return self.start == 0 and self.count == size


UNUSED = Axis(-1)  # an argument that is not needed at all
Needs = dict[fx.Node, Axis | None]  # None: the whole argument
