"""Finds rounding to the floats of NVFP4, MXFP4 and MXFP8 in a graph, with the same numbers as the graph computes, bit for bit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, fx

from qcompile.activations import ActivationQuant
from qcompile.float_rounding import FLOAT_KINDS
from qcompile.graph.nodes import aten, hint, is_call, value
from qcompile.graph.walk import evaluate
from qcompile.meaning import SCALE_DTYPES
from qcompile.recognize.region import Region
from qcompile.recognize.rounding_inputs import SPECIAL, Stream, plain, special, unit_of

KINDS = ("nvfp4", "mxfp4", "mxfp8")


@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """A rounding, with the node and the value of its static scale; inverted: the scale is one over the node's value."""

    quant: ActivationQuant
    node: fx.Node | None = None
    scale: Tensor | None = None
    inverted: bool = False

    def scale_node(self, constant: set[fx.Node]) -> fx.Node | None:
        """The node of the scale itself: an inverse is put behind what it is the inverse of, once."""
        if self.node is None or not self.inverted:
            return self.node
        known = next((user for user in self.node.users if is_call(user, aten.reciprocal.default) and user in constant), None)
        if known is not None:
            return known
        with self.node.graph.inserting_after(self.node):
            made = self.node.graph.call_function(aten.reciprocal.default, (self.node,))
        made.meta["val"] = value(self.node).reciprocal()
        constant.add(made)
        return made


def find(region: Region, scalars: Sequence[fx.Node]) -> Exact | None:
    """How the region rounds, or None. scalars: constants of one element that may be the global scale of NVFP4."""
    dtype = value(region.source).dtype
    if dtype not in SCALE_DTYPES:
        return None
    sample, made = region.run(lambda shape: plain(shape, dtype, 1.0))
    for exact in _candidates(region, scalars):
        if _same(exact, sample, made) and all(_same(exact, *run) for run in _runs(region, exact, dtype)):
            return exact
    return None


def _candidates(region: Region, scalars: Sequence[fx.Node]) -> Iterator[Exact]:
    k = int(hint(value(region.source).shape[-1]))
    kinds = [kind for kind in KINDS if k % FLOAT_KINDS[kind].group == 0]
    for kind, arithmetic in product(kinds, ("float32", "input")):
        quant = ActivationQuant(kind=kind, arithmetic=arithmetic)
        if quant.is_static:
            yield from (Exact(quant, *scale) for scale in _scales(region, scalars))
        else:
            yield Exact(quant)


def _scales(region: Region, scalars: Sequence[fx.Node]) -> Iterator[tuple[fx.Node, Tensor, bool]]:
    """Those that may be a global scale, and then those that may be the inverse of one: of inputs that x can hold."""
    nodes = [node for node in scalars if value(node).dtype in SCALE_DTYPES]
    values = evaluate(nodes, region.feed)
    most = torch.finfo(value(region.source).dtype).max
    for inverted in (False, True):
        for node, given in zip(nodes, values, strict=True):
            scale = given.reciprocal() if inverted else given
            if math.isfinite(float(scale)) and float(scale) > 0 and 64 * unit_of("nvfp4", scale) <= most:
                yield node, scale, inverted


def _runs(region: Region, exact: Exact, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """(input, what the region makes of it) for all inputs that tell look-alikes apart."""
    kind, unit = exact.quant.kind, unit_of(exact.quant.kind, exact.scale)
    for at_end in (False, True) if region.is_cut else (False,):
        stream = Stream(kind, dtype, exact.scale)
        while not stream.is_done:
            yield region.run(stream.draw, at_end=at_end)
    for number in SPECIAL:
        yield region.run(partial(special, dtype=dtype, unit=unit, value=number))


def _same(exact: Exact, sample: Tensor, made: Tensor) -> bool:
    """Whether the region's result is the rounding's: the same numbers, or NaN anywhere in a token, which makes all outputs NaN."""
    ours = exact.quant.apply(sample, exact.scale)
    if made.numel() != ours.numel() or made.dtype is not ours.dtype:
        return False
    theirs = made.reshape(ours.shape)
    lost = theirs.isnan().any(-1, keepdim=True) & ours.isnan().any(-1, keepdim=True)
    return bool(((theirs == ours) | lost).all())
