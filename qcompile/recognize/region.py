"""Runs a region of a graph, from what is rounded to a product's input, on inputs of our choice."""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, fx

from qcompile.graph.nodes import hint, value
from qcompile.graph.slices import Root, Slices
from qcompile.graph.walk import evaluate

# Inputs of more values are run at some rows only, and not at all beyond the second number.
_FEW_VALUES, _MOST_VALUES, _MOST_ROWS = 1 << 18, 1 << 24, 32

Draw = Callable[[Sequence[int]], Tensor]


class TooLargeError(ValueError):
    """A region that cannot be run on some rows alone."""


class Region:
    """What lies between `source` and `x`; feed: the values of the graph's constants."""

    def __init__(self, x: fx.Node, source: fx.Node, feed: Mapping[fx.Node, Tensor]) -> None:
        self.x, self.source, self.feed = x, source, feed
        self._shape = [int(hint(size)) for size in value(x).shape]

    @property
    def is_cut(self) -> bool:
        """Whether it may be run on some rows alone, the first or the last ones."""
        return len(self._shape) > 1 and math.prod(self._shape) > _FEW_VALUES

    def run(self, draw: Draw, *, at_end: bool = False) -> tuple[Tensor, Tensor]:
        """(an input that `draw` made for a shape, what the region makes of it), both of a few rows where the region allows that."""
        drawn: list[Tensor] = []

        def drawing(shape: Sequence[int]) -> Tensor:
            if math.prod(shape) > _MOST_VALUES:
                raise TooLargeError
            drawn.append(draw(shape))
            return drawn[-1]

        shape = self._shape
        if not self.is_cut:
            sample = drawing([int(hint(size)) for size in value(self.source).shape])
            return sample, evaluate([self.x], {**self.feed, self.source: sample})[0]
        rows = max(range(len(shape) - 1), key=lambda dim: shape[dim])
        slices = Slices([Root(self.x, {"m": rows})], {"m": shape[rows]}, {**self.feed, self.source: drawing})
        others = max(1, math.prod(shape[:-1]) // max(1, shape[rows]))
        align = slices.align("m")
        few = -(-max(2, _MOST_ROWS // others) // align) * align
        few = min(few, shape[rows])
        start = (shape[rows] - few) // align * align if at_end else 0
        made = slices.evaluate({"m": range(start, start + few)})[0]
        return drawn[0], made
