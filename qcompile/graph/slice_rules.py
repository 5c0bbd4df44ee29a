"""What an operator needs of its arguments for a range along one dimension of its result, and its sizes for such a range."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.graph.axis import UNUSED, Axis, Needs, UnknownError
from qcompile.graph.nodes import hint, named_arguments, value
from qcompile.meaning import ALONG_N
from qcompile.torch_internals.tensors import OpOverload

Rule = Callable[[fx.Node, Mapping[str, Any], Axis], Needs | None]


def needs_of(node: fx.Node, axis: Axis) -> Needs | None:
    """Which range of each argument a range of the node's result along `axis` needs; None if that is not known."""
    target: Any = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload):
        return _same(node, axis) if getattr(target, "__name__", "") == "getitem" and node.op == "call_function" else None
    name = target.overloadpacket.__name__
    rule = _reinterpret if target is torch.ops.aten.view.dtype else _RULES.get(name)
    if rule is None and torch.Tag.pointwise in target.tags:
        rule = _pointwise
    if rule is None:
        return None
    try:
        found = rule(node, named_arguments(node), axis)
    except UnknownError:
        return None
    if found is None or any(
        parent not in found for parent in node.all_input_nodes if isinstance(value(parent), Tensor | list | tuple)
    ):
        return None
    return found


def run(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Sequence[int] | None) -> Any:
    """The call's value for a result of that shape: sizes that the call spells out are replaced."""
    target: Any = node.target
    if shape is None or not isinstance(target, OpOverload):
        return target(*args, **kwargs)
    if target is torch.ops.aten.view.dtype:
        return target(args[0].contiguous(), *args[1:], **kwargs)
    name = target.overloadpacket.__name__
    if name in _RESHAPES:  # a part of a tensor has other strides, and perhaps a size of one where the whole has none
        return args[0].reshape(list(shape))
    if name == "cat" and any(part is None for part in args[0]):
        return next(part for part in args[0] if part is not None)
    if name == "slice" and list(shape) == list(args[0].shape):
        return args[0]
    if name == "unpack":
        return target(*args, **{**kwargs, "rows": shape[0], "columns": shape[1]})
    place = _SIZES.get(name)
    if place is None:
        return target(*args, **kwargs)
    new: Any = shape[0] if place == "n" else list(shape)
    index = [argument.name for argument in target._schema.arguments].index(place)
    if index < len(args):
        return target(*args[:index], new, *args[index + 1 :], **kwargs)
    return target(*args, **{**kwargs, place: new})


# Operators that spell out the size of their result, and the name of that argument.
_SIZES = {
    "expand": "size", "full": "size", "zeros": "size", "ones": "size", "empty": "size", "new_zeros": "size", "new_ones": "size",
    "new_full": "size", "new_empty": "size", "dequantize_packed": "n",
}  # fmt: skip
_RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "squeeze"})


def _shape(node: Any) -> list[int]:
    return [int(hint(size)) for size in value(node).shape]


def _tensors(node: fx.Node) -> list[fx.Node]:
    """The arguments that are tensors or lists of tensors."""
    return [parent for parent in node.all_input_nodes if isinstance(value(parent), Tensor | list | tuple)]


def _same(node: fx.Node, axis: Axis) -> Needs | None:
    return dict.fromkeys(_tensors(node), axis)


def _merge(found: Sequence[tuple[Any, Axis | None]]) -> Needs | None:
    """None if one argument stands twice in the call with different ranges."""
    needs: Needs = {}
    for parent, axis in found:
        if needs.setdefault(parent, axis) != axis:
            return None
    return needs


def _pointwise(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """Each argument is broadcast against the result."""
    shape = _shape(node)
    tensors = [item for item in given.values() if isinstance(item, fx.Node) and isinstance(value(item), Tensor)]
    return _merge([(item, _broadcast(_shape(item), shape, axis)) for item in tensors])


def _broadcast(argument: Sequence[int], result: Sequence[int], axis: Axis) -> Axis | None:
    dim = axis.dim - (len(result) - len(argument))
    return None if dim < 0 or argument[dim] != result[axis.dim] else axis.at(dim)


def _permute(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    source, rank = given["self"], len(_shape(node))
    return {source: axis.at(int(given["dims"][axis.dim]) % rank)}


def _t(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    return {given["self"]: axis.at(axis.dim if len(_shape(node)) < 2 else 1 - axis.dim)}


def _transpose(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    rank = len(_shape(node))
    first, second = int(given["dim0"]) % rank, int(given["dim1"]) % rank
    return {given["self"]: axis.at({first: second, second: first}.get(axis.dim, axis.dim))}


def _view(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """A range of one dimension is a run of memory behind each index of the dimensions before it; so it is in the argument."""
    source = given["self"]
    before, after = _shape(source), _shape(node)
    outer, run = math.prod(after[: axis.dim]), math.prod(after[axis.dim + 1 :])
    for dim in reversed(range(len(before))):
        if math.prod(before[:dim]) == outer and (before[dim] != 1 or dim == len(before) - 1):
            inner = math.prod(before[dim + 1 :])
            if not inner or after[axis.dim] * run != before[dim] * inner:
                return None
            return {source: axis.at(dim, Fraction(run, inner))}
    return None


def _reinterpret(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """Bytes seen as another dtype: the last dimension becomes longer or shorter."""
    source = given["self"]
    last, here = len(_shape(node)) - 1, _shape(node)
    return {source: axis.at(axis.dim, Fraction(_shape(source)[last], here[last]) if axis.dim == last else 1)}


def _scatter(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """slice_scatter, select_scatter: another tensor stands in a part of one dimension."""
    dim = int(given["dim"]) % len(_shape(node))
    if axis.dim == dim:
        return None
    single = len(_shape(given["src"])) < len(_shape(node))
    return _merge([(given["self"], axis), (given["src"], axis.at(axis.dim - (single and dim < axis.dim)))])


def _pad(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    padded = {len(_shape(node)) - 1 - index for index in range(len(given["pad"]) // 2)}
    return None if axis.dim in padded else {given["self"]: axis}


def _unsqueeze(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    dim = int(given["dim"]) % len(_shape(node))
    return None if axis.dim == dim else {given["self"]: axis.at(axis.dim - (dim < axis.dim))}


def _stack(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    dim = int(given["dim"]) % len(_shape(node))
    if axis.dim == dim:
        return None
    return {item: axis.at(axis.dim - (dim < axis.dim)) for item in given["tensors"]}


def _cat(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """Along the dimension itself, the label has to lie in one of the parts; the others are not needed then."""
    dim, parts = int(given["dim"]) % len(_shape(node)), list(given["tensors"])
    if any(len(_shape(part)) != len(_shape(node)) for part in parts):
        return None
    if axis.dim != dim:
        return dict.fromkeys(parts, axis)
    needs: Needs = dict.fromkeys(parts, UNUSED)
    begin = 0
    for part in parts:
        size = _shape(part)[dim]
        if begin <= axis.start and axis.start + axis.count <= begin + size and len(needs) == len(parts):
            return {**needs, part: replace(axis, start=axis.start - begin)}
        begin += size
    return None


def _along_another(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """Works on one dimension and leaves the others as they are."""
    dims = given.get("dim")
    if dims is None:
        return None
    rank = len(_shape(given["self"]))
    touched = {int(dim) % rank for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    return None if not touched or axis.dim in touched else {given["self"]: axis}


def _reduction(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    dims = given.get("dim")
    if dims is None or dims == []:
        return None
    rank = len(_shape(given["self"]))
    gone = sorted({int(dim) % rank for dim in (dims if isinstance(dims, list | tuple) else [dims])})
    if given.get("keepdim"):
        return None if axis.dim in gone else {given["self"]: axis}
    kept = [dim for dim in range(rank) if dim not in gone]
    return {given["self"]: axis.at(kept[axis.dim])}


def _select(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    dim = int(given["dim"]) % len(_shape(given["self"]))
    return {given["self"]: axis.at(axis.dim + (dim <= axis.dim))}


def _slice(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    source, dim = given["self"], int(given["dim"]) % len(_shape(node))
    if axis.dim != dim:
        return {source: axis}
    size, start = _shape(source)[dim], int(hint(given["start"] or 0))
    begin = min(size, start + size if start < 0 else start)
    return {source: replace(axis, start=axis.start + begin)} if given["step"] == 1 else None


def _index_select(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    dim = int(given["dim"]) % len(_shape(node))
    return _merge(
        [(given["self"], axis), (given["index"], None)]
        if axis.dim != dim
        else [(given["self"], None), (given["index"], axis.at(0))]
    )


def _index(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """One index tensor: its dimensions stand in the place of the indexed one."""
    source, indices = given["self"], list(given["indices"])
    places = [place for place, item in enumerate(indices) if item is not None]
    if len(places) != 1 or value(indices[places[0]]).dtype in {torch.bool, torch.uint8}:
        return None
    place, rank = places[0], len(_shape(indices[places[0]]))
    if axis.dim < place:
        return _merge([(source, axis), (indices[place], None)])
    if axis.dim < place + rank:
        return _merge([(source, None), (indices[place], axis.at(axis.dim - place))])
    return _merge([(source, axis.at(axis.dim - rank + 1)), (indices[place], None)])


def _embedding(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    rank = len(_shape(given["indices"]))
    inside = axis.dim < rank
    return _merge([(given["weight"], None if inside else axis.at(1)), (given["indices"], axis if inside else None)])


def _repeat_interleave(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    if given.get("dim") is None or not isinstance(given.get("repeats"), int):
        return None
    dim = int(given["dim"]) % len(_shape(node))
    return {given["self"]: axis if axis.dim != dim else axis.at(dim, Fraction(1, given["repeats"]))}


def _split(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    source = given["self"]
    return None if int(given["dim"]) % len(_shape(source)) == axis.dim else {source: axis}


def _unbind(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    dim = int(given["dim"]) % len(_shape(given["self"]))
    return {given["self"]: axis.at(axis.dim + (dim <= axis.dim))}


def _linear(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    last = axis.dim == len(_shape(node)) - 1
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    along = axis.at(0) if last else None
    found = [(x, None if last else axis), (weight, along)]
    return _merge([*found, *([(bias, along)] if isinstance(bias, fx.Node) else [])])


def _matmul(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """mm, addmm, bmm: rows of the first factor, columns of the second, batches of both."""
    rank = len(_shape(node))
    left, right = (given["mat1"], given["mat2"]) if "mat1" in given else (given["self"], given.get("mat2"))
    rows, columns = axis.dim == rank - 2, axis.dim == rank - 1
    found = [(left, None if columns else axis), (right, None if rows else axis)]
    if "mat1" in given:
        found.append((given["self"], _broadcast(_shape(given["self"]), _shape(node), axis)))
    return _merge(found)


def _quantized_linear(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """The canonical operator; constants along N are those of meaning.ALONG_N."""
    last = axis.dim == len(_shape(node)) - 1
    along = axis.at(0) if last else None
    found: list[tuple[fx.Node, Axis | None]] = [(given["x"], None if last else axis)]
    found += [(given[name], along) for name in ALONG_N if isinstance(given[name], fx.Node)]
    found += [(given[name], None) for name in ("perm", "act_scale", "act_zero") if isinstance(given[name], fx.Node)]
    return _merge(found)


def _fake_quantize(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    if axis.dim == len(_shape(node)) - 1:
        return None
    found = [(given["x"], axis), *((given[name], None) for name in ("scale", "zero") if isinstance(given[name], fx.Node))]
    return _merge(found)


# Along which dimension N lies in the packed codes, the scales and the zero points of a layout (formats.layouts).
_ROWS = {
    "ct_pack": (0, 0, 0), "ct_pack_plain_zeros": (0, 0, 0), "ct_int8": (0, 0, 0), "nvfp4": (0, 0, None), "mxfp4": (0, 0, None),
    "ct_e4m3": (0, 0, None), "mxfp8": (0, 0, None),
    "gptq": (1, 1, 1), "gptq_v2": (1, 1, 1), "gptq_wrapped": (1, 1, 1), "awq": (1, 1, 1),
}  # fmt: skip


def _dequantize_packed(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """The front door's operator: rows of a weight are rows (or columns) of all that it is stored in."""
    rows, n = _ROWS.get(given["layout"]), int(given["n"])
    if axis.dim != 0 or rows is None:
        return None
    found: list[tuple[fx.Node, Axis | None]] = []
    for name, dim in zip(("packed", "scales", "zeros"), rows, strict=True):
        part = given[name]
        if not isinstance(part, fx.Node):
            continue
        size = _shape(part)[dim] if dim is not None and len(_shape(part)) > dim else 1
        if size == 1 and n != 1:
            found.append((part, None))
            continue
        per = Fraction(size, n)
        if per not in {Fraction(1), Fraction(int(given["bits"]), 32)}:
            return None  # words that are not filled up to the last row
        found.append((part, axis.at(int(dim or 0), per)))
    if isinstance(given["g_idx"], fx.Node):
        found.append((given["g_idx"], None))
    return _merge(found)


def _unpack(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """Codes in words: rows of the one are rows of the other; columns of the codes that fill whole words are these."""
    words = given["words"]
    if axis.dim == 0:
        return {words: axis}
    per = Fraction(_shape(words)[1], int(given["columns"]))
    width = 8 * value(words).dtype.itemsize
    return {words: axis.at(1, per)} if per == Fraction(int(given["bits"]), width) else None


def _constant(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    """One value everywhere, of the size that the call spells out."""
    return {item: None for item in node.all_input_nodes}


def _alike(node: fx.Node, given: Mapping[str, Any], axis: Axis) -> Needs | None:
    return {given["self"]: axis}


_COPIES = ("clone", "alias", "detach", "lift_fresh_copy", "_to_copy", "convert_element_type")
# Operators that torch does not tag as pointwise although they are.
_POINTWISE = ("__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "lshift", "rshift")

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_COPIES, lambda node, _, axis: _same(node, axis)),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like"), _alike),
    **dict.fromkeys(("full", "zeros", "ones", "new_zeros", "new_ones", "new_full", "empty", "new_empty"), _constant),
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _view),
    **dict.fromkeys(("amax", "amin", "sum", "mean"), _reduction),
    **dict.fromkeys(("mm", "addmm", "bmm"), _matmul),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("cumsum", "argsort"), _along_another),
    **dict.fromkeys(("slice_scatter", "select_scatter"), _scatter),
    **dict.fromkeys(("copy", "expand", *_POINTWISE), _pointwise),
    "constant_pad_nd": _pad,
    "permute": _permute,
    "t": _t,
    "transpose": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _view,
    "stack": _stack,
    "cat": _cat,
    "select": _select,
    "slice": _slice,
    "index_select": _index_select,
    "index": _index,
    "embedding": _embedding,
    "repeat_interleave": _repeat_interleave,
    "unbind": _unbind,
    "linear": _linear,
    "quantized_linear": _quantized_linear,
    "fake_quantize": _fake_quantize,
    "dequantize_packed": _dequantize_packed,
    "unpack": _unpack,
}
