"""Checks a rewrite by value: the canonical call and the graph it replaced, run on the same input, must agree."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.graph.nodes import Constant, hint, value
from qcompile.graph.slices import Root, Slices, spread
from qcompile.graph.walk import through_views
from qcompile.meaning import Noise
from qcompile.proofs.kernel import ACCEPT_DB, LEAST_VALUES, MOST, STRIP
from qcompile.weights.memory import page_out, trim

_MOST_ROUNDS = 64
# Strips of a large weight, and input rows, that a rewrite is run on.
_STRIPS, _MOST_ROWS = 8, 64


@dataclass(frozen=True, slots=True, eq=False)
class Rewritten:
    """A linear [n, k] of the graph: `result` stands for `original`. leaves: raw constants of its weight; module: its path."""

    original: fx.Node
    result: fx.Node
    leaves: tuple[fx.Node, ...]
    n: int
    k: int
    module: str


def verify_rewrite(x: fx.Node, parts: Sequence[Rewritten], constants: Mapping[fx.Node, Constant]) -> str:
    """Runs the canonical call on `x` and the graph it replaced on one input; "" if they agree, else a sentence.

    This looks at the whole rewrite (unpacking, scales behind the product, biases, fused parts), whatever built it: at some rows of
    the input and, of a large weight, at some outputs from the first to the last.
    """
    trim()
    source = through_views(x)
    feed: dict[fx.Node, Any] = {node: constant.tensor for node, constant in constants.items()}
    try:
        for part in parts:
            before, after = value(part.original), value(part.result)
            if before.shape != after.shape or before.dtype is not after.dtype:
                return f"the rewrite gives {after.dtype} {list(after.shape)} instead of {before.dtype} {list(before.shape)}"
            wrong = _differs(part, source, feed)
            if wrong:
                return wrong
    finally:
        for leaf in {leaf for part in parts for leaf in part.leaves}:
            page_out(constants[leaf].tensor)
    return ""


def _differs(part: Rewritten, source: fx.Node, feed: Mapping[fx.Node, Any]) -> str:
    shape = [int(hint(size)) for size in value(part.original).shape]
    outputs = _along(shape, part.n)
    rows = max((dim for dim in range(len(shape)) if dim != outputs), key=lambda dim: shape[dim], default=None)
    axes = {label: dim for label, dim in {"n": outputs, "m": rows}.items() if dim is not None}
    sizes = {label: shape[dim] for label, dim in axes.items()}
    seeds = itertools.count()
    drawn = {source: lambda size: sample(value(source), next(seeds), size)}
    slices = Slices([Root(part.original, axes), Root(part.result, axes)], sizes, {**feed, **drawn})
    noise, seen = Noise(), 0
    spans = _ranges(part, slices, sizes, math.prod(shape))
    for number, ranges in enumerate(itertools.cycle(spans), 1):
        before, after = slices.evaluate(ranges)
        noise.add(before, after)
        seen += before.numel()
        if seen == 0 or number >= _MOST_ROUNDS or (seen >= LEAST_VALUES and number >= len(spans)):
            break
    if noise.noise and not noise.db >= ACCEPT_DB:
        least = f"at least {ACCEPT_DB:.0f} is asked for"
        return f"the rewrite of {part.module} is wrong on a probe: {noise.db:.1f} dB, {least}"
    return ""


def _ranges(part: Rewritten, slices: Slices, sizes: Mapping[str, int], values: int) -> list[dict[str, range]]:
    """Some rows of the input; of a large weight with some strips of its outputs, otherwise with all."""
    found: dict[str, range] = {}
    if "m" in sizes:
        others = max(1, values // max(1, sizes["m"] * sizes.get("n", 1)))
        align = slices.align("m")
        found["m"] = range(min(sizes["m"], -(-max(1, _MOST_ROWS // others) // align) * align))
    if "n" not in sizes or part.n * part.k <= MOST:
        return [found]
    strips = spread(sizes["n"], max(1, STRIP // part.k), _STRIPS, slices.align("n"))
    return [{**found, "n": strip} for strip in strips]


def _along(shape: Sequence[int], n: int) -> int | None:
    """The dimension of a result that its outputs lie along, if that is clear."""
    found = [dim for dim, size in enumerate(shape) if size == n]
    return len(shape) - 1 if shape and shape[-1] == n else found[0] if len(found) == 1 else None


def sample(like: Tensor, seed: int, shape: Sequence[int]) -> Tensor:
    """Random values of that shape, of a fake tensor's dtype and device."""
    generator = torch.Generator().manual_seed(99 + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(like.device, like.dtype)
