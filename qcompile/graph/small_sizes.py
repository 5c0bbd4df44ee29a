"""Runs part of a graph at smaller sizes than it was traced with, where every operator in it is one function for all sizes.

The inputs say which of their dimensions are shrunk, and every dimension behind them is followed: as a product of axes, in the order
in which they lie in memory. So the literal sizes of views and expansions are not read but computed anew, and it does not matter if
two axes happen to be equally long. An operator is let through only if it treats all places along a shrunk axis alike (element by
element, a sum over the axis, a product along it); one that could depend on the number of places is a SizesError. What such a
graph computes at small sizes it therefore computes at all sizes. After each operator, the full sizes of the axes must multiply up
to what was traced.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.graph.nodes import aten, hint, is_pure, is_size, prims, value
from qcompile.graph.walk import subgraph


class SizesError(Exception):
    """A part of a graph cannot be run at smaller sizes; says which operator is in the way."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One factor of a dimension: `full` places as traced, `small` here.

    "" is the name of an axis that stays as long as it is; _SAME that of one along which the values are equal: it is one place long
    here, whatever it is traced with.
    """

    name: str
    full: int
    small: int


_SAME = "="
Dim = tuple[Axis, ...]  # a dimension of size 1 has no axis
Layout = tuple[Dim, ...]


def fixed(size: int) -> Dim:
    """A dimension that stays as it is."""
    return () if size == 1 else (Axis("", size, size),)


def shrunk(name: str, full: int, most: int) -> Dim:
    """A dimension of at most `most` places, called by that name; two dimensions of one name are the same axis."""
    return () if full == 1 else (Axis(name, full, min(full, most)),)


def full_size(dim: Dim) -> int:
    return math.prod(axis.full for axis in dim)


def small_size(dim: Dim) -> int:
    return math.prod(axis.small for axis in dim)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A tensor at small sizes, and what its dimensions are made of."""

    tensor: Tensor
    layout: Layout


def run_small(root: fx.Node, feed: Mapping[fx.Node, Placed]) -> Placed:
    """What `root` is at the sizes of `feed`. Raises SizesError if that cannot be told; other errors are the operators' own."""
    values: dict[fx.Node, Placed] = dict(feed)
    with torch.no_grad():
        for node in subgraph([root], set(feed), is_size):
            values[node] = _checked(node, _run(node, values))
    result = values[root]
    if any(_is_same(dim) for dim in result.layout):
        raise SizesError(f"{root.name} does not depend on all it is as large as")
    return result


def _run(node: fx.Node, values: Mapping[fx.Node, Placed]) -> Placed:
    target: Any = node.target
    rule = _RULES.get(target) if node.op == "call_function" else None
    if rule is None and is_pure(node) and torch.Tag.pointwise in getattr(target, "tags", ()):
        rule = _pointwise
    if rule is None:
        raise SizesError(f"{target} may depend on the sizes it was traced with")
    return rule(node, *_loaded(node.args, values), **_loaded(node.kwargs, values))


def _loaded(item: Any, values: Mapping[fx.Node, Placed]) -> Any:
    """Arguments with the values of the nodes in them; a size, which may only be used where rules do not look at it, as a node."""
    if isinstance(item, fx.Node):
        return values.get(item, item)
    if isinstance(item, dict):
        return {key: _loaded(part, values) for key, part in item.items()}
    return type(item)(_loaded(part, values) for part in item) if isinstance(item, list | tuple) else item


def _checked(node: fx.Node, placed: Placed) -> Placed:
    fake = value(node)[0] if isinstance(value(node), tuple | list) else value(node)
    sizes = [full_size(dim) for dim in placed.layout]
    if not isinstance(fake, Tensor) or sizes != [hint(size) for size in fake.shape] or placed.tensor.dtype is not fake.dtype:
        raise SizesError(f"{node.name} has another shape than what was followed of it")
    return placed


def _is_same(dim: Dim) -> bool:
    return any(axis.name == _SAME for axis in dim)


def _key(dim: Dim) -> list[tuple[str, int]]:
    """Equal for dimensions made of the same axes; neighbours that stay as they are count as one."""
    parts: list[tuple[str, int]] = []
    for axis in dim:
        if axis.name == "" and parts and parts[-1][0] == "":
            parts[-1] = ("", parts[-1][1] * axis.full)
        else:
            parts.append((axis.name, axis.full))
    return parts


def _joined(node: fx.Node, dims: Iterable[Dim]) -> Dim:
    """The one dimension that all of these broadcast to."""
    found: Dim = ()
    for dim in dims:
        if not found or (_is_same(found) and dim):
            found = dim
        elif dim and not _is_same(dim) and _key(dim) != _key(found):
            raise SizesError(f"{node.name} combines dimensions that are not known to be the same")
    return found


def _whole(placed: Placed) -> Placed:
    """The same with every place there along axes of equal values, which then count as fixed."""
    layout = tuple(fixed(full_size(dim)) if _is_same(dim) else dim for dim in placed.layout)
    return Placed(placed.tensor.expand([small_size(dim) for dim in layout]), layout)


def _pointwise(node: fx.Node, *args: Any, **kwargs: Any) -> Placed:
    operands = [item for item in (*args, *kwargs.values()) if isinstance(item, Placed)]
    if any(isinstance(item, fx.Node | list | tuple) for item in (*args, *kwargs.values())):
        raise SizesError(f"{node.name} computes with a size")
    rank = max(len(item.layout) for item in operands)
    padded = [((),) * (rank - len(item.layout)) + item.layout for item in operands]
    layout = tuple(_joined(node, dims) for dims in zip(*padded, strict=True))
    return Placed(_call(node, args, kwargs), layout)


def _call(node: fx.Node, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Tensor:
    target: Any = node.target
    result: Tensor = target(*(_tensor(item) for item in args), **{key: _tensor(item) for key, item in kwargs.items()})
    return result


def _tensor(item: Any) -> Any:
    return item.tensor if isinstance(item, Placed) else item


def _kept(node: fx.Node, x: Placed, *args: Any, **kwargs: Any) -> Placed:
    """Casts, copies and constants of the same shape."""
    return Placed(_call(node, (x, *args), kwargs), x.layout)


def _copied(node: fx.Node, x: Placed, *_: Any, **__: Any) -> Placed:
    return x


def _viewed(node: fx.Node, x: Placed, *_: Any, **__: Any) -> Placed:
    whole = _whole(x)
    waiting = [axis for dim in whole.layout for axis in dim]
    layout: list[Dim] = []
    for size in value(node).shape:
        dim: list[Axis] = []
        left = int(hint(size))
        while left > 1:
            if not waiting:
                raise SizesError(f"{node.name} is a view that does not follow the axes")
            axis = waiting.pop(0)
            if axis.name == "" and left % axis.full and axis.full % left == 0:
                waiting.insert(0, Axis("", axis.full // left, axis.full // left))
                axis = Axis("", left, left)
            if left % axis.full:
                raise SizesError(f"{node.name} is a view that cuts an axis of {axis.full} places")
            dim.append(axis)
            left //= axis.full
        layout.append(tuple(dim))
    if waiting:
        raise SizesError(f"{node.name} is a view that does not follow the axes")
    return Placed(whole.tensor.reshape([small_size(dim) for dim in layout]), tuple(layout))


def _expanded(node: fx.Node, x: Placed, *_: Any, **__: Any) -> Placed:
    sizes = [int(hint(size)) for size in value(node).shape]
    padded: Layout = ((),) * (len(sizes) - len(x.layout)) + x.layout
    layout = tuple(dim if dim or size == 1 else (Axis(_SAME, size, 1),) for dim, size in zip(padded, sizes, strict=True))
    return Placed(x.tensor.reshape([small_size(dim) for dim in padded]), layout)


def _sliced(node: fx.Node, x: Placed, *_: Any, **__: Any) -> Placed:
    """A slice that cuts nothing off."""
    if [hint(size) for size in value(node).shape] != [full_size(dim) for dim in x.layout]:
        raise SizesError(f"{node.name} cuts off a part")
    return x


def _permuted(node: fx.Node, x: Placed, order: Any) -> Placed:
    return Placed(x.tensor.permute(order), tuple(x.layout[place] for place in order))


def _swapped(node: fx.Node, x: Placed, first: int = 0, second: int = 1) -> Placed:
    order = list(range(len(x.layout)))
    order[first], order[second] = order[second], order[first]
    return _permuted(node, x, order)


def _reduced(node: fx.Node, x: Placed, dims: Any, *args: Any, **kwargs: Any) -> Placed:
    places = {int(place) % len(x.layout) for place in ([dims] if isinstance(dims, int) else dims or range(len(x.layout)))}
    if any(_is_same(x.layout[place]) for place in places):
        raise SizesError(f"{node.name} adds up equal values")
    keep = len(value(node).shape) == len(x.layout)
    kept = [() if place in places else dim for place, dim in enumerate(x.layout) if keep or place not in places]
    return Placed(_call(node, (x, dims, *args), kwargs), tuple(kept))


def _softmax(node: fx.Node, x: Placed, dim: int, *args: Any, **kwargs: Any) -> Placed:
    if _is_same(x.layout[dim]):
        raise SizesError(f"{node.name} is a softmax of equal values")
    return Placed(_call(node, (x, dim, *args), kwargs), x.layout)


def _product(node: fx.Node, a: Placed, b: Placed) -> Placed:
    """bmm and mm."""
    if _is_same(a.layout[-1]) or _is_same(b.layout[-2]) or _key(a.layout[-1]) != _key(b.layout[-2]):
        raise SizesError(f"{node.name} sums over dimensions that are not known to be the same")
    batch = tuple(_joined(node, dims) for dims in zip(a.layout[:-2], b.layout[:-2], strict=True))
    return Placed(torch.matmul(a.tensor, b.tensor), (*batch, a.layout[-2], b.layout[-1]))


def _filled(node: fx.Node, *args: Any, **kwargs: Any) -> Placed:
    """full([sizes], number) and scalar_tensor(number)"""
    place = 1 if node.target is aten.full.default else 0
    number = args[place] if len(args) > place else kwargs.get("fill_value")
    if not isinstance(number, bool | int | float):
        raise SizesError(f"{node.name} is filled with a number that is computed")
    fake = value(node)
    sizes = [int(hint(size)) for size in fake.shape]
    tensor = torch.full([1] * len(sizes), number, dtype=fake.dtype, device="cpu")
    return Placed(tensor, tuple((Axis(_SAME, size, 1),) if size > 1 else () for size in sizes))


def _flash(node: fx.Node, q: Placed, k: Placed, v: Placed, *args: Any, **kwargs: Any) -> Placed:
    """PyTorch's own attention (without dropout): its first result, which is all that is used of it."""
    batch, keys = (_joined(node, dims) for dims in ((q.layout[0], k.layout[0], v.layout[0]), (k.layout[2], v.layout[2])))
    heads, width = q.layout[1], _joined(node, (q.layout[3], k.layout[3]))
    mask = kwargs.get("attn_mask")
    if isinstance(mask, Placed):
        wanted = (batch, heads, q.layout[2], keys)[4 - len(mask.layout) :]
        joined = tuple(_joined(node, (have, full)) if have else () for have, full in zip(mask.layout, wanted, strict=True))
        kwargs["attn_mask"] = _spread(mask, joined)
    operands = (
        _spread(q, (batch, heads, q.layout[2], width)),
        _spread(k, (batch, _sharing(node, k.layout[1], heads), keys, width)),
        _spread(v, (batch, _sharing(node, v.layout[1], heads), keys, v.layout[3])),
    )
    result: Any = _call(node, (*operands, *args), kwargs)
    return Placed(result[0], (batch, heads, q.layout[2], v.layout[3]))


def _sharing(node: fx.Node, heads: Dim, all_heads: Dim) -> Dim:
    """The heads of K or V: those of the queries, or fewer, each for a fixed number of query heads that follow each other."""
    if _is_same(heads):
        return all_heads
    shared = _key(all_heads)[: len(heads)] == _key(heads) and all(axis.name == "" for axis in all_heads[len(heads) :])
    return heads if shared else _joined(node, (heads, all_heads))


def _spread(placed: Placed, layout: Layout) -> Placed:
    """The same with every place there along the axes of `layout`."""
    return Placed(placed.tensor.expand([small_size(dim) for dim in layout]), layout)


def _first(node: fx.Node, item: Placed, index: int) -> Placed:
    if index != 0:
        raise SizesError(f"{node.name} is result {index} of an operator, of which only the first is followed")
    return item


_VIEWS = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
_COPIES = (aten.clone.default, aten.alias.default, aten.detach.default)
_CASTS = (
    aten._to_copy.default,
    prims.convert_element_type.default,
    aten.full_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
)
_REDUCTIONS = (
    aten.amax.default,
    aten.amin.default,
    aten.sum.dim_IntList,
    aten.mean.dim,
    aten.any.dim,
    aten.any.dims,
    aten.all.dim,
    aten.logsumexp.default,
)
_Rule = Callable[..., Placed]
_RULES: dict[Any, _Rule] = {
    **dict.fromkeys(_VIEWS, _viewed),
    **dict.fromkeys(_COPIES, _copied),
    **dict.fromkeys(_CASTS, _kept),
    **dict.fromkeys(_REDUCTIONS, _reduced),
    **dict.fromkeys((aten._softmax.default, aten._safe_softmax.default, aten.softmax.int), _softmax),
    **dict.fromkeys((aten.bmm.default, aten.mm.default), _product),
    **dict.fromkeys((aten.full.default, aten.scalar_tensor.default), _filled),
    **dict.fromkeys((aten.masked_fill.Tensor, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar), _pointwise),
    aten.expand.default: _expanded,
    aten.slice.Tensor: _sliced,
    aten.permute.default: _permuted,
    aten.transpose.int: _swapped,
    aten.t.default: _swapped,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _flash,
    operator.getitem: _first,
}
