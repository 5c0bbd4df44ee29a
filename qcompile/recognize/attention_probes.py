"""Operands on which an attention is tried: small ones laid out as in the graph, with every kind of mask and number."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.graph.nodes import hint, value
from qcompile.graph.small_sizes import Layout, SizesError, fixed, full_size, shrunk, small_size
from qcompile.recognize.attention import Attention

MASKS = ("random mask", "some keys unseen", "a query that sees nothing", "a query with the least finite number everywhere")
# At most so many places of each axis; two that are not equal show which axis is which.
_BATCH, _HEADS, _QUERIES, _KEYS = 2, 2, 3, 5
# Queries and keys around what our kernel takes at once: kTile 16 and kKeys 64 keys (csrc/cpu/attention.h), kPieceQueries 16 queries
# and kLeastKeys 128 keys of one thread's part (csrc/cpu/binding_attention.cpp).
_BORDERS = ((1, 16), (1, 65), (2, 129), (16, 64), (17, 80))
_EXTREMES = ((0, math.nan), (1, math.nan), (2, math.nan), (2, math.inf))  # which operand, which number
_LONG_QUERIES, _LONG_KEYS, _LONG_FLOATS = 2, 4096, 1 << 21


@dataclass(frozen=True, slots=True)
class Probe:
    """q, k, v and, where the attention has one, its mask. numbers: values are compared, not only where they are finite."""

    name: str
    values: list[Tensor]
    numbers: bool = True


def shape_of(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    """Shape, strides and dtype of a tensor, symbols replaced by their hints."""
    fake = value(node)
    return tuple(hint(size) for size in fake.shape), tuple(hint(step) for step in fake.stride()), fake.dtype


def layouts(found: Attention) -> list[Layout]:
    """What the dimensions of the attention's inputs are made of, small but for the width and the group that shares K and V.

    Raises SizesError if the inputs do not have the shapes that qcompile.recognize.attention.Attention gives.
    """
    (batch, heads, queries, width), (_, kv_heads, keys, _) = shape_of(found.q)[0], shape_of(found.k)[0]
    if kv_heads == 0 or heads % kv_heads:
        raise SizesError(f"its {heads} heads cannot share {kv_heads} of keys and values")
    b, d, shared = shrunk("batch", batch, _BATCH), fixed(width), shrunk("K/V heads", kv_heads, _HEADS)
    h, i = (*shared, *fixed(heads // kv_heads)), shrunk("queries", queries, _QUERIES)
    j = i if found.q in (found.k, found.v) else shrunk("keys", keys, _KEYS)
    result: list[Layout] = [(b, h, i, d), (b, shared, j, d), (b, shared, j, d)]
    if found.mask is not None:
        result.append(_mask_layout(shape_of(found.mask)[0], (b, h, i, j)))
    for node, layout in zip(found.inputs, result, strict=True):
        if shape_of(node)[0] != tuple(full_size(dim) for dim in layout):
            raise SizesError(f"{node.name} {list(shape_of(node)[0])} does not go with queries of {list(shape_of(found.q)[0])}")
    return result


def _mask_layout(shape: tuple[int, ...], scores: Layout) -> Layout:
    if len(shape) > len(scores):
        raise SizesError(f"its mask {list(shape)} has more dimensions than its scores")
    return tuple(() if size == 1 else dim for size, dim in zip(shape, scores[len(scores) - len(shape) :], strict=True))


def shapes_of(laid_out: list[Layout]) -> list[tuple[int, ...]]:
    """The small shapes of these layouts."""
    return [tuple(small_size(dim) for dim in layout) for layout in laid_out]


def probes(found: Attention, shapes: list[tuple[int, ...]]) -> Iterator[Probe]:
    """Operands of these shapes: random ones with each kind of mask, and large scores."""
    generator = torch.Generator().manual_seed(8080)
    operands = _operands(found, shapes, generator)
    for name in MASKS if found.mask is not None else ("random operands",):
        yield Probe(name, [*operands, *_masks(found, shapes, name, generator)])
    see_all = _masks(found, shapes, "see all", generator)
    # A softmax that does not subtract the largest score first is infinite here.
    yield Probe("scores of hundreds", [operands[0] * 30, operands[1] * 30, operands[2], *see_all], numbers=False)


def _extreme(place: int, number: float, values: list[Tensor]) -> Probe:
    """The values with such a number in the first row of every head of queries, keys or values."""
    changed = values[place].clone(memory_format=torch.preserve_format)
    changed[..., :1, :1] = number
    made = [changed if item is values[place] else item for item in values]
    return Probe(f"{('queries', 'keys', 'values')[place]} with {number}", made, numbers=False)


def borders(found: Attention, shapes: list[tuple[int, ...]]) -> Iterator[Probe]:
    """Operands to compare our kernel with the formula alone: at the borders of its blocks, with as many keys as the graph has
    (up to a bound), and with numbers that are not finite."""
    generator = torch.Generator().manual_seed(9090)
    (_, heads, rows, width), keys = shape_of(found.q)[0], shape_of(found.k)[0][2]
    group = heads // shape_of(found.k)[0][1]
    longest = min(keys, _LONG_KEYS, _LONG_FLOATS // (2 * width + 8 * group))
    for queries, length in (*_BORDERS, (min(rows, _LONG_QUERIES), longest)):
        sized = _resized(found, shapes, queries, length)
        operands = _operands(found, sized, generator)
        for name in MASKS[:2] if found.mask is not None else ("random operands",):
            yield Probe(f"{name}, {queries} x {length}", [*operands, *_masks(found, sized, name, generator)])
    # Not asked of the graph: PyTorch's own kernel loses a NaN in some lanes of a short row (2.13, AVX-512).
    for place, number in _EXTREMES:
        yield _extreme(place, number, [*_operands(found, shapes, generator), *_masks(found, shapes, "see all", generator)])


def _resized(found: Attention, shapes: list[tuple[int, ...]], queries: int, keys: int) -> list[tuple[int, ...]]:
    """The shapes with other numbers of queries and keys, a batch of one, and one head of K and V."""
    (_, heads, _, width), kv_heads = shapes[0], shapes[1][1]
    result: list[tuple[int, ...]] = [(1, heads // kv_heads, queries, width), (1, 1, keys, width), (1, 1, keys, width)]
    if found.mask is not None:
        full = (1, heads // kv_heads, queries, keys)[4 - len(shapes[3]) :]
        result.append(tuple(1 if size == 1 else want for size, want in zip(shapes[3], full, strict=True)))
    return result


def _operands(found: Attention, shapes: list[tuple[int, ...]], generator: torch.Generator) -> list[Tensor]:
    # Scores of about one: large enough to tell a wrong scale, small enough that a graph in bfloat16 rounds little.
    size = (1 / (abs(found.scale) * math.sqrt(shapes[0][-1]))) ** 0.5 if found.scale else 1.0
    made: dict[fx.Node, Tensor] = {}
    for node, shape, factor in zip((found.q, found.k, found.v), shapes, (size, size, 1.0), strict=False):
        if node not in made:  # one node may be several operands
            made[node] = _random(node, shape, generator) * factor
    return [made[node] for node in (found.q, found.k, found.v)]


def _masks(found: Attention, shapes: list[tuple[int, ...]], name: str, generator: torch.Generator) -> list[Tensor]:
    """The mask, if the attention has one."""
    if found.mask is None:
        return []
    mask = _random(found.mask, shapes[3], generator)
    boolean = mask.dtype is torch.bool
    if name == "random mask":
        return [mask]
    mask = torch.ones_like(mask) if boolean else torch.zeros_like(mask)
    unseen: Any = False if boolean else -math.inf
    if name == "some keys unseen":
        mask[..., (mask.shape[-1] + 1) // 2 :] = unseen
    elif name != "see all":
        least = unseen if boolean or "sees nothing" in name else torch.finfo(mask.dtype).min
        mask[..., :1, :] = least
    return [mask]


def _random(node: fx.Node, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random numbers of that shape, in memory in the order of the graph's tensor and with gaps where it has some."""
    full, strides, dtype = shape_of(node)
    random = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    if dtype is torch.bool:
        return random > -1.0
    order = sorted(range(len(full)), key=lambda place: (strides[place], full[place]))
    steps, dense, here = [0] * len(full), 1, 1
    for place in order:
        gap = strides[place] > dense
        steps[place] = here + 8 if gap else here
        dense, here = max(dense, strides[place] * full[place]), steps[place] * shape[place]
    return torch.empty_strided(shape, steps, dtype=dtype, device="cpu").copy_(random)
