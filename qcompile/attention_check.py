"""Proves by value that a proposed attention is what the graph computes, and that our kernel computes it."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.attention import Attention
from qcompile.graph import evaluate, hint, structural_key, subgraph, value
from qcompile.meaning import Verdict, sqnr_db

ACCEPT_DB = 40.0


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
    worst: float | None = None
    for name, values in probes(found):
        feed = {**dict(zip(found.inputs, values, strict=True)), **sizes}
        expected = evaluate([found.out], feed)[0]
        wrong, _ = _differs(expected, reference(found, values), ACCEPT_DB)
        if wrong:
            return f"the graph computes something else ({name}): {wrong}", None
        if not kernel:
            continue
        got = call(values[0], values[1], values[2], values[3] if found.mask is not None else None, found)
        wrong, measured = _differs(expected, got, ACCEPT_DB)
        if wrong:
            return f"wrong on a probe ({name}): {wrong}", measured
        worst = measured if worst is None else min(worst, measured)
    return "", worst


def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, found: Attention) -> Tensor:
    """Our operator on these operands."""
    result: Tensor = torch.ops.qcompile.native_attention.default(
        q, k, v, mask, found.scale, found.causal, nan_if_unseen=found.nan_if_unseen
    )
    return result


def reference(found: Attention, values: list[Tensor]) -> Tensor:
    """The proposal's formula in float32, in the dtype of q."""
    q, k, v = (item.to(torch.float32) for item in values[:3])
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.transpose(-1, -2)) * found.scale
    if found.mask is not None:
        mask = values[3]
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    if found.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    weights = torch.softmax(scores, dim=-1)
    if not found.nan_if_unseen:
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    return (weights @ v).to(values[0].dtype)


def _differs(expected: Tensor, got: Tensor, least_db: float) -> tuple[str, float]:
    if tuple(got.shape) != tuple(expected.shape) or got.dtype is not expected.dtype:
        return f"{got.dtype} {list(got.shape)} instead of {expected.dtype} {list(expected.shape)}", math.nan
    there = ~expected.isnan()
    if not torch.equal(~got.isnan(), there):
        return "NaN in other places", math.nan
    measured = sqnr_db(expected[there], got[there]) if bool(there.any()) else math.inf
    return ("" if measured >= least_db else f"{measured:.1f} dB, at least {least_db:.0f} is asked for"), measured


def probes(found: Attention) -> Iterator[tuple[str, list[Tensor]]]:
    """Random operands, strided as in the graph: for a graph without mask one set, with a mask one for each kind of mask."""
    generator = torch.Generator().manual_seed(8080)
    # Scores of about one: large enough to tell a wrong scale, small enough that a graph in bfloat16 rounds little.
    width = value(found.q).shape[-1]
    size = (1 / (abs(found.scale) * math.sqrt(width))) ** 0.5 if found.scale else 1.0
    operands = [_random(node, generator) for node in (found.q, found.k, found.v)]
    operands[0] *= size
    operands[1] *= size
    if found.mask is None:
        yield "random operands", operands
        return
    for name in ("random mask", "some keys unseen", "a query that sees nothing", "a query with the least finite number everywhere"):
        yield name, [*operands, _mask(found.mask, name, generator)]


def _mask(node: fx.Node, name: str, generator: torch.Generator) -> Tensor:
    mask = _random(node, generator)
    boolean = mask.dtype is torch.bool
    if name == "random mask":
        return mask
    mask = torch.ones_like(mask) if boolean else torch.zeros_like(mask)
    unseen: Any = False if boolean else -math.inf
    if name == "some keys unseen":
        mask[..., (mask.shape[-1] + 1) // 2 :] = unseen
    else:
        least = unseen if boolean or "sees nothing" in name else torch.finfo(mask.dtype).min
        mask[..., :1, :] = least
    return mask


def shape_of(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    """Shape, strides and dtype of a tensor, symbols replaced by their hints."""
    fake = value(node)
    return tuple(hint(size) for size in fake.shape), tuple(hint(step) for step in fake.stride()), fake.dtype


def _random(node: fx.Node, generator: torch.Generator) -> Tensor:
    shape, strides, dtype = shape_of(node)
    random = torch.randn(shape, generator=generator)
    if dtype is torch.bool:
        random = random > -1.0
    if 0 in strides or dtype is torch.bool:
        return random.to(dtype)
    return torch.empty_strided(shape, strides, dtype=dtype).copy_(random)
