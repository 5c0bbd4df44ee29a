"""Recognizes how a layer's input is rounded before the product, by running that region of the graph on random inputs."""

import math
from collections.abc import Mapping, Sequence

import networkx as nx
import torch
from torch import Tensor, fx

from qcompile.activations import ActivationQuant
from qcompile.codebooks import NUMBERS
from qcompile.float_rounding import FLOAT_KINDS
from qcompile.graph.nodes import Constant, aten, hint, is_call, prims, value
from qcompile.graph.slices import Root, Slices
from qcompile.graph.walk import evaluate, through_views
from qcompile.meaning import sqnr_db
from qcompile.operators import fake_quantize

_ROUNDS = frozenset({aten.round.default, prims.round.default} if hasattr(prims, "round") else {aten.round.default})
_LIMIT = 60  # nodes looked at above the product
_ACCEPT_DB = 40.0
_PROBES = 5
# Inputs of more values are probed at some rows only, and not at all beyond the second number.
_FEW_VALUES, _MOST_VALUES, _MOST_ROWS = 1 << 18, 1 << 24, 32

DYNAMIC = (
    ActivationQuant(kind="token", divisor=127.5, low=-128),
    ActivationQuant(kind="token", divisor=127.0, low=-127),
    ActivationQuant(kind="token", divisor=127.0, low=-128),
    ActivationQuant(kind="token", divisor=128.0, low=-128),
    ActivationQuant(kind="token_asymmetric"),
)
# Tried where the code casts to float8, or has a table of FP4: kinds that need no constant.
FLOATS = tuple(
    ActivationQuant(kind=kind, arithmetic=arithmetic)
    for kind in ("fp8_token", "fp8_group", "mxfp8", "mxfp4")
    for arithmetic in ("float32", "input")
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
    for source in _sources(x, constant):
        if value(source).dtype is not value(x).dtype:  # a wider copy of what stands further up; the kernel's x is as the product's
            continue
        found = _probe(x, source, constant, constants)
        if found is not None:
            return found
    return None


def _sources(x: fx.Node, constant: set[fx.Node]) -> list[fx.Node]:
    """Dominators of x, nearest first, that have a rounding between themselves and x."""
    graph: nx.DiGraph[fx.Node] = nx.DiGraph()
    stack, seen, rounds = [x], {x}, []
    while stack and len(seen) < _LIMIT:
        node = stack.pop(0)
        if is_call(node, *_ROUNDS) or _is_float8(node):
            rounds.append(node)
        if node.op != "call_function":
            continue
        for parent in node.all_input_nodes:
            if parent in constant or not isinstance(value(parent), Tensor):
                continue
            graph.add_edge(node, parent)  # edges point up: x is the start
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    if not rounds:
        return []
    # Reversed edges: a node above x through which every path from x upwards runs is a post-dominator, found from x with a
    # virtual end behind all nodes without parents.
    end = fx.Graph().placeholder("end")
    for node in list(graph.nodes):
        if graph.out_degree(node) == 0:
            graph.add_edge(node, end)
    reverse = graph.reverse()
    immediate = nx.immediate_dominators(reverse, end)
    found: list[fx.Node] = []
    above = immediate.get(x)
    while above is not None and above is not end:
        node = above
        if value(node).dtype.is_floating_point and any(
            nx.has_path(graph, x, r) and nx.has_path(graph, r, node) and r is not node for r in rounds if r in graph
        ):
            found.append(node)
        above = immediate.get(node)
        above = None if above is node else above
    return found[:4]


def _is_float8(node: fx.Node) -> bool:
    """Whether it gives numbers of 8 bits: a cast rounds."""
    return isinstance(value(node), Tensor) and value(node).dtype in NUMBERS.values()


def _probe(x: fx.Node, source: fx.Node, constant: set[fx.Node], constants: Mapping[fx.Node, Constant]) -> Rounded | None:
    """The known rounding that is nearest to the region from `source` to `x` on every probe, or None if none is near enough."""
    feed: dict[fx.Node, Tensor] = {node: constant.tensor for node, constant in constants.items()}
    try:
        probes = [_region(x, source, feed, number) for number in range(_PROBES)]
    except (RuntimeError, ValueError, TypeError):
        return None
    samples, regions = [sample for sample, _ in probes], [region for _, region in probes]
    best: Rounded | None = None
    reached = _ACCEPT_DB
    for candidate in _candidates(x, source, constant):
        agreement = min(_agreement(region, sample, candidate, feed) for region, sample in zip(regions, samples, strict=True))
        if agreement > reached or (best is None and agreement == reached):
            best, reached = candidate, agreement
    return best


def _candidates(x: fx.Node, source: fx.Node, constant: set[fx.Node]) -> list[Rounded]:
    """The known roundings: dynamic ones where the source has the tokens of x, to floats where its width has whole groups."""
    k = int(hint(value(source).shape[-1]))
    dynamic = [quant for quant in (*DYNAMIC, *FLOATS) if not quant.to_floats or k % (FLOAT_KINDS[quant.kind].group or 1) == 0]
    dynamic = dynamic if k == int(hint(value(x).shape[-1])) else []
    return [Rounded(source, quant) for quant in dynamic] + _static_candidates(x, source, constant)


def _static_candidates(x: fx.Node, source: fx.Node, constant: set[fx.Node]) -> list[Rounded]:
    """Static rounding by each scalar constant of the region as the scale, with and without another one as the zero point."""
    scalars: dict[fx.Node, None] = {}
    stack, seen = [x], {x, source}
    while stack:
        node = stack.pop()
        for parent in node.all_input_nodes:
            if parent in constant and isinstance(value(parent), Tensor) and value(parent).numel() == 1:
                scalars[parent] = None
            elif parent not in seen and parent not in constant:
                seen.add(parent)
                stack.append(parent)
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


class _TooLargeError(ValueError):
    """A region that cannot be run on some rows alone."""


def _region(x: fx.Node, source: fx.Node, feed: Mapping[fx.Node, Tensor], number: int) -> tuple[Tensor, Tensor]:
    """(a sample of the source, what the region makes of it), both of a few rows where the region allows that."""
    drawn: list[Tensor] = []

    def draw(shape: Sequence[int]) -> Tensor:
        if math.prod(shape) > _MOST_VALUES:
            raise _TooLargeError
        drawn.append(_sample(shape, value(source).dtype, number))
        return drawn[-1]

    shape = [int(hint(size)) for size in value(x).shape]
    rows = max(range(len(shape) - 1), key=lambda dim: shape[dim], default=None)
    if rows is None or math.prod(shape) <= _FEW_VALUES:
        sample = draw([int(hint(size)) for size in value(source).shape])
        return sample, evaluate([x], {**feed, source: sample})[0]
    slices = Slices([Root(x, {"m": rows})], {"m": shape[rows]}, {**feed, source: draw})
    others = max(1, math.prod(shape[:-1]) // max(1, shape[rows]))
    align = slices.align("m")
    few = -(-max(2, _MOST_ROWS // others) // align) * align
    region = slices.evaluate({"m": range(min(few, shape[rows]))})[0]
    return drawn[0], region


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
