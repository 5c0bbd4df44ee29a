"""Recognizes how a layer's input is rounded before the product, by running that region of the graph on inputs of our choice."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import networkx as nx
import torch
from torch import Tensor, fx

from qcompile.activations import ActivationQuant
from qcompile.codebooks import NUMBERS
from qcompile.float_rounding import FLOAT_KINDS
from qcompile.graph.nodes import Constant, aten, hint, is_call, prims, value
from qcompile.graph.walk import evaluate, through_views
from qcompile.meaning import sqnr_db
from qcompile.operators import fake_quantize
from qcompile.recognize import exact_rounding
from qcompile.recognize.region import Region

_ROUNDS = frozenset({aten.round.default, prims.round.default} if hasattr(prims, "round") else {aten.round.default})
# With what else code may round to small floats: tables, comparisons, the bits of a number.
_MAY_ROUND = frozenset(
    {
        *(aten.argmin.default, aten.bucketize.Tensor, aten.searchsorted.Tensor, aten.floor.default, aten.view.dtype),
        *(aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar),
        *(aten.gt.Tensor, aten.ge.Tensor, aten.lt.Tensor, aten.le.Tensor),
    }
)
_LIMIT = 160  # nodes looked at above the product
_MOST_SOURCES = 4
_ACCEPT_DB = 40.0
_PROBES = 5

DYNAMIC = (
    ActivationQuant(kind="token", divisor=127.5, low=-128),
    ActivationQuant(kind="token", divisor=127.0, low=-127),
    ActivationQuant(kind="token", divisor=127.0, low=-128),
    ActivationQuant(kind="token", divisor=128.0, low=-128),
    ActivationQuant(kind="token_asymmetric"),
)
# Those that need no constant; of blocks of 16 and 32: qcompile.recognize.exact_rounding.
FLOATS = tuple(
    ActivationQuant(kind=kind, arithmetic=arithmetic) for kind in ("fp8_token", "fp8_group") for arithmetic in ("float32", "input")
)


class Rounded:
    """The product's input is `quant` applied to `source`; scale and zero are constant nodes of a static one.

    tried: found by running the region on probes, with the constants' present content.
    """

    __slots__ = ("quant", "scale", "source", "tried", "zero")

    def __init__(
        self,
        source: fx.Node,
        quant: ActivationQuant,
        scale: fx.Node | None = None,
        zero: fx.Node | None = None,
        *,
        tried: bool = True,
    ) -> None:
        self.source, self.quant, self.scale, self.zero, self.tried = source, quant, scale, zero, tried


def recognize_activation(x: fx.Node, constant: set[fx.Node], constants: Mapping[fx.Node, Constant]) -> Rounded | None:
    """How x came about by rounding, or None if no known rounding explains it (then x stays as the graph computes it)."""
    node = through_views(x)
    if is_call(node, fake_quantize):
        source, scale, zero, spec = node.args
        assert isinstance(source, fx.Node) and isinstance(spec, str)
        return Rounded(
            source,
            ActivationQuant.parse(spec),
            scale if isinstance(scale, fx.Node) else None,
            zero if isinstance(zero, fx.Node) else None,
            tried=False,
        )
    feed = {node: constant.tensor for node, constant in constants.items()}
    for source, rounds in _sources(x, constant):
        if value(source).dtype is not value(x).dtype:  # a wider copy of what stands further up; the kernel's x is as the product's
            continue
        region = Region(x, source, feed)
        found = _exact(region, constant) or (_probe(region, constant) if rounds else None)
        if found is not None:
            return found
    return None


def _sources(x: fx.Node, constant: set[fx.Node]) -> list[tuple[fx.Node, bool]]:
    """Dominators of x, nearest first, behind which something may round; each with whether that is sure to round."""
    graph = _above(x, constant)
    rounds = {node for node in graph if is_call(node, *_ROUNDS) or _is_float8(node)}
    may = {node for node in graph if is_call(node, *_MAY_ROUND)}
    if not rounds and not may:
        return []
    # Reversed edges: a node above x through which every path from x upwards runs is a post-dominator, found from x with a
    # virtual end behind all nodes without parents.
    end = fx.Graph().placeholder("end")
    graph.add_edges_from([(node, end) for node in graph if graph.out_degree(node) == 0])
    immediate = nx.immediate_dominators(graph.reverse(), end)
    found: list[tuple[fx.Node, bool]] = []
    node = immediate.get(x)
    while node is not None and node is not end and len(found) < _MOST_SOURCES:
        if isinstance(value(node), Tensor) and value(node).dtype.is_floating_point:
            between = nx.ancestors(graph, node)
            if not between.isdisjoint(rounds | may):
                found.append((node, not between.isdisjoint(rounds)))
        above = immediate.get(node)
        node = None if above is node else above
    return found


def _above(x: fx.Node, constant: set[fx.Node]) -> "nx.DiGraph[fx.Node]":
    """x and what it is computed from, no constants; edges point up: x is the start."""
    graph: nx.DiGraph[fx.Node] = nx.DiGraph()
    graph.add_node(x)
    stack = [x]
    while stack and len(graph) < _LIMIT:
        node = stack.pop(0)
        for parent in node.all_input_nodes if node.op == "call_function" else ():
            if parent in constant or not isinstance(value(parent), Tensor | tuple | list):
                continue
            if parent not in graph:
                stack.append(parent)
            graph.add_edge(node, parent)
    return graph


def _is_float8(node: fx.Node) -> bool:
    """Whether it gives numbers of 8 bits: a cast rounds."""
    return isinstance(value(node), Tensor) and value(node).dtype in NUMBERS.values()


def _exact(region: Region, constant: set[fx.Node]) -> Rounded | None:
    """Rounding to the floats of blocks, which the region is proven to compute."""
    if not _same_width(region):
        return None
    try:
        found = exact_rounding.find(region, _scalars(region, constant))
    except (RuntimeError, ValueError, TypeError):
        return None
    return None if found is None else Rounded(region.source, found.quant, found.scale_node(constant))


def _probe(region: Region, constant: set[fx.Node]) -> Rounded | None:
    """The known rounding that is nearest to the region on every probe, or None if none is near enough."""
    dtype = value(region.source).dtype
    try:
        probes = [region.run(partial(_sample, dtype=dtype, probe=number)) for number in range(_PROBES)]
    except (RuntimeError, ValueError, TypeError):
        return None
    best: Rounded | None = None
    reached = _ACCEPT_DB
    for candidate in _candidates(region, constant):
        agreement = min(_agreement(made, sample, candidate, region.feed) for sample, made in probes)
        if agreement > reached or (best is None and agreement == reached):
            best, reached = candidate, agreement
    return best


def _same_width(region: Region) -> bool:
    return int(hint(value(region.source).shape[-1])) == int(hint(value(region.x).shape[-1]))


def _candidates(region: Region, constant: set[fx.Node]) -> list[Rounded]:
    """The known roundings: dynamic ones where the source has the tokens of x, to floats where its width has whole groups."""
    k = int(hint(value(region.source).shape[-1]))
    dynamic = [quant for quant in (*DYNAMIC, *FLOATS) if not quant.to_floats or k % (FLOAT_KINDS[quant.kind].group or 1) == 0]
    dynamic = dynamic if _same_width(region) else []
    return [Rounded(region.source, quant) for quant in dynamic] + _static_candidates(region.source, _scalars(region, constant))


def _scalars(region: Region, constant: set[fx.Node]) -> list[fx.Node]:
    """The constants of one element that the region reads."""
    scalars: dict[fx.Node, None] = {}
    stack, seen = [region.x], {region.x, region.source}
    while stack:
        node = stack.pop()
        for parent in node.all_input_nodes:
            if parent in constant and isinstance(value(parent), Tensor) and value(parent).numel() == 1:
                scalars[parent] = None
            elif parent not in seen and parent not in constant:
                seen.add(parent)
                stack.append(parent)
    return list(scalars)


def _static_candidates(source: fx.Node, scalars: Sequence[fx.Node]) -> list[Rounded]:
    """Static rounding by each of the scalars as the scale, with and without another one as the zero point."""
    quant = ActivationQuant(kind="tensor")
    scales = [node for node in scalars if value(node).dtype.is_floating_point]
    zeros: list[fx.Node | None] = [None, *scalars]
    floats = [
        Rounded(source, ActivationQuant(kind="fp8_tensor", arithmetic=arithmetic), scale)
        for scale in scales
        for arithmetic in ("float32", "input")
    ]
    return floats + [Rounded(source, quant, scale, zero) for scale in scales for zero in zeros if zero is not scale]


def _agreement(region: Tensor, sample: Tensor, candidate: Rounded, feed: Mapping[fx.Node, Tensor]) -> float:
    """How near the candidate comes to what the region made of the sample, in dB; -inf if they cannot be compared."""
    wanted = [node for node in (candidate.scale, candidate.zero) if node is not None]
    try:
        static = dict(zip(wanted, evaluate(wanted, feed), strict=True)) if wanted else {}
        ours = candidate.quant.apply(
            sample,
            static.get(candidate.scale) if candidate.scale is not None else None,
            static.get(candidate.zero) if candidate.zero is not None else None,
        )
    except (RuntimeError, ValueError, TypeError):
        return -math.inf
    if region.numel() != ours.numel():
        return -math.inf
    region = region.reshape(ours.shape)
    if not bool(region.any()) and not bool(ours.any()):
        return math.inf
    agreement = sqnr_db(region, ours)
    return -math.inf if math.isnan(agreement) else agreement


def _sample(shape: Sequence[int], dtype: torch.dtype, probe: int) -> Tensor:
    """Random inputs of that shape: plain, large, tiny, with outliers, with a row of zeros."""
    generator = torch.Generator().manual_seed(77 + probe)
    x = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    if probe == 1:
        x = x * 40.0 + 3.0
    elif probe == 2:
        x = x * 2.0**-7
    elif probe == 3 and len(shape):
        x = torch.where(torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") > 0.99, x * 30.0, x)
    elif probe == 4 and len(shape) > 1:
        x[..., :1, :] = 0.0
    return x.to(dtype)
