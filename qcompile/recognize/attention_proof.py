"""Proves by value that a proposed attention is what the graph computes, and that our kernel computes it, whatever its size.

The graph's code is run at small sizes (qcompile.graph.small_sizes says why that proves it for its own), our kernel there and at the
borders of its blocks. Code whose sizes cannot be told apart is run as it is if that is little work, and left alone otherwise.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.graph.nodes import hint, value
from qcompile.graph.small_sizes import Layout, Placed, SizesError, run_small
from qcompile.graph.text import structural_key
from qcompile.graph.walk import evaluate, subgraph
from qcompile.meaning import Verdict, sqnr_db
from qcompile.recognize.attention import Attention
from qcompile.recognize.attention_probes import Probe, borders, layouts, probes, shape_of, shapes_of

ACCEPT_DB = 40.0
_MOST_NUMBERS = 1 << 21  # of all tensors together in code that is run at its own sizes: 8 MiB in float32


def outer_inputs(found: Attention) -> dict[fx.Node, Any] | str:
    """The sizes that the original code reads besides the proposal's operands, with their hints; a sentence if it reads a tensor."""
    stop: set[fx.Node] = set(found.inputs)
    sizes: dict[fx.Node, Any] = {}
    for node in _symbolic_before(found):
        sizes[node] = hint(value(node))
    for node in subgraph([found.out], stop | set(sizes)):
        if node.op != "call_function":
            return f"it also reads {node.name}"
    return sizes


def _symbolic_before(found: Attention) -> list[fx.Node]:
    stop = set(found.inputs)
    result: list[fx.Node] = []
    seen = {found.out}
    queue = [found.out]
    while queue:
        for parent in queue.pop().all_input_nodes:
            if parent in seen or parent in stop:
                continue
            seen.add(parent)
            if isinstance(value(parent), int | torch.SymInt):
                result.append(parent)
            else:
                queue.append(parent)
    return result


def key_of(found: Attention, sizes: dict[fx.Node, Any]) -> str:
    """Equal for two proposals that are proven by one proof."""
    stop = [*found.inputs, *sizes]
    more = (found.scale, found.causal, found.nan_if_unseen, list(sizes.values()), *(shape_of(node) for node in found.inputs))
    return f"{structural_key([found.out], stop)}\n{more}"


def disproof(found: Attention, sizes: dict[fx.Node, Any], kernel: bool) -> Verdict:
    """("" or the sentence why the proposal must not be used, least SQNR in dB of our kernel against the graph).

    The graph is compared with the proposal's formula, and with `kernel` also with what our operator gives.
    """
    try:
        laid_out = layouts(found)
        shapes = shapes_of(laid_out)
        return _disproof(found, shapes, kernel, lambda probe: _at_small_sizes(found, probe, laid_out))
    except SizesError as error:
        numbers = _numbers(found, sizes)
        if numbers > _MOST_NUMBERS:
            return f"it is too large to be tried as it is ({numbers} numbers) and cannot be tried smaller: {error}", None
        shapes = [shape_of(node)[0] for node in found.inputs]
        return _disproof(found, shapes, kernel, lambda probe: evaluate([found.out], {**_feed(found, probe), **sizes})[0])


def _disproof(found: Attention, shapes: list[tuple[int, ...]], kernel: bool, graph: Any) -> Verdict:
    worst = math.inf
    for made in probes(found, shapes):
        probe = _tied(found, made)
        expected = graph(probe)
        wrong, _ = _differs(expected, reference(found, probe.values), probe)
        if wrong:
            return f"the graph computes something else ({probe.name}): {wrong}", None
        if kernel:
            wrong, measured = _differs(expected, _ours(found, probe), probe)
            if wrong:
                return f"wrong on a probe ({probe.name}): {wrong}", measured
            worst = min(worst, measured)
    for probe in borders(found, shapes) if kernel else ():
        wrong, measured = _differs(reference(found, probe.values), _ours(found, probe), probe)
        if wrong:
            return f"wrong on a probe ({probe.name}): {wrong}", measured
        worst = min(worst, measured)
    return "", worst if kernel else None


def _tied(found: Attention, probe: Probe) -> Probe:
    """The probe with one tensor for every place of a node that is several of the operands (attention of a tensor on itself)."""
    last = {node: index for index, node in enumerate(found.inputs)}
    return replace(probe, values=[probe.values[last[node]] for node in found.inputs])


def _feed(found: Attention, probe: Probe) -> dict[fx.Node, Tensor]:
    return dict(zip(found.inputs, probe.values, strict=True))


def _at_small_sizes(found: Attention, probe: Probe, laid_out: list[Layout]) -> Tensor:
    placed = [Placed(tensor, layout) for tensor, layout in zip(probe.values, laid_out, strict=True)]
    return run_small(found.out, dict(zip(found.inputs, placed, strict=True))).tensor


def _numbers(found: Attention, sizes: dict[fx.Node, Any]) -> int:
    """How many numbers the original code computes and reads, at the sizes it was traced with."""
    nodes = [*found.inputs, *subgraph([found.out], {*found.inputs, *sizes})]
    return sum(math.prod(shape_of(node)[0]) for node in nodes if isinstance(value(node), Tensor))


def _ours(found: Attention, probe: Probe) -> Tensor:
    q, k, v, *mask = probe.values
    return call(q, k, v, mask[0] if mask else None, found)


def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, found: Attention) -> Tensor:
    """Our operator on these operands."""
    result: Tensor = torch.ops.qcompile.native_attention.default(
        q, k, v, mask, found.scale, found.causal, nan_if_unseen=found.nan_if_unseen
    )
    return result


def reference(found: Attention, values: list[Tensor]) -> Tensor:
    """The proposal's formula in float32, in the dtype of q."""
    q, k, v = (item.to(torch.float32) for item in values[:3])
    # The rows of all heads that share K and V as rows of one head: repeating K and V would take many times their memory.
    scores = (q.reshape(*k.shape[:2], -1, q.shape[3]) @ k.transpose(-1, -2)).reshape(*q.shape[:3], -1) * found.scale
    if found.mask is not None:
        mask = values[3]
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    if found.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1), -math.inf)
    weights = torch.softmax(scores, dim=-1)
    if not found.nan_if_unseen:
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    return (weights.reshape(*k.shape[:2], -1, k.shape[2]) @ v).reshape(q.shape).to(values[0].dtype)


def _differs(expected: Tensor, got: Tensor, probe: Probe) -> tuple[str, float]:
    """What is different, or ""; and the SQNR of what is finite, infinite where only the places of such numbers were asked for."""
    if tuple(got.shape) != tuple(expected.shape) or got.dtype is not expected.dtype:
        return f"{got.dtype} {list(got.shape)} instead of {expected.dtype} {list(expected.shape)}", math.nan
    there = expected.isfinite()
    if not torch.equal(got.isnan(), expected.isnan()):
        return "NaN in other places", math.nan
    if not torch.equal(got.isfinite(), there):
        return "infinity in other places", math.nan
    if not probe.numbers:
        return "", math.inf
    measured = sqnr_db(expected[there], got[there]) if bool(there.any()) else math.inf
    return ("" if measured >= ACCEPT_DB else f"{measured:.1f} dB, at least {ACCEPT_DB:.0f} is asked for"), measured
