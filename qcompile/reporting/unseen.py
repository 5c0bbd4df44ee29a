"""Rows for quantized layers of a compiled model of which no graph has a product: it breaks there, or the code runs eagerly."""

import threading
import weakref
from collections.abc import Collection, Hashable, Iterable, Sequence

import torch
from torch import Tensor, nn

from qcompile.graph.nodes import LOW_BIT
from qcompile.reporting.report import look_too
from qcompile.reporting.rows import SiteReport
from qcompile.torch_internals.names import path_without_wrappers, unwrapped
from qcompile.torch_internals.tensors import parts_of

# Types whose values are quantized weights or their scales; the others also hold pictures, tables and masks.
_ONLY_WEIGHTS = frozenset(kind for kind in LOW_BIT if str(kind).startswith(("torch.float", "torch.uint1", "torch.uint2")))
_SCALES = ("scale", "absmax", "zero")

_NO_PRODUCT = "its weight is in a graph that has no product with it: the code is broken into several graphs between the two"

_lock = threading.Lock()
_compiled: list[weakref.ref[nn.Module]] = []
_seen: set[int] = set()  # ids of tensors that were constants of graphs
_leaving: set[int] = set()  # of those that met nothing there


def watch(model: nn.Module) -> None:
    """From now on reports look over this model, once the first graph of it is compiled."""
    model = unwrapped(model)
    with _lock:
        if all(known() is not model for known in _compiled):
            _compiled[:] = [known for known in _compiled if known() is not None] + [weakref.ref(model)]


def saw(tensors: Iterable[Tensor]) -> None:
    """These are constants of a graph."""
    with _lock:
        _seen.update(map(id, tensors))


def clear() -> None:
    """No graph was compiled yet."""
    with _lock:
        _seen.clear()
        _leaving.clear()


def rows(given: Sequence[SiteReport]) -> list[SiteReport]:
    """One row for each module with a quantized weight that no given row is about."""
    with _lock:
        models = [model for known in _compiled if (model := known()) is not None]
        seen = _seen | {row.identity for row in given if isinstance(row.identity, int)}
    found: dict[Hashable, SiteReport] = {}
    for model in models:
        if any(id(tensor) in seen for tensor in (*model.parameters(), *model.buffers())):
            found = {**{row.identity: row for row in of_model(model, seen, given)}, **found}
    return list(found.values())


def without_product(constants: Iterable[Tensor], named: Collection[str]) -> list[SiteReport]:
    """One row for each layer whose quantized weight is among these constants of a graph, in which they meet no input.

    named: modules that rows are about
    """
    ids = {id(tensor) for tensor in constants}
    if not ids:
        return []
    with _lock:
        _leaving.update(ids)
        models = [model for known in _compiled if (model := known()) is not None]
    found: list[SiteReport] = []
    for model in models:
        weights: list[tuple[str, Tensor]] = []
        for name, module in model.named_modules():
            weight, path = quantized_weight(module), path_without_wrappers(name)
            if weight is None or _is_part(path, weight, weights):
                continue
            weights.append((path, weight))
            if path not in named and not ids.isdisjoint(_parts(weight)):
                found.append(SiteReport(module=path, declined=_NO_PRODUCT, identity=id(weight)))
    return found


def _parts(tensor: Tensor) -> set[int]:
    return {id(tensor), *(id(part) for _, part in parts_of(tensor))}


def of_model(model: nn.Module, seen: Collection[int], given: Sequence[SiteReport]) -> list[SiteReport]:
    """Those rows for one model. seen: ids of tensors that are constants of graphs."""
    found: list[SiteReport] = []
    named, told = {row.module for row in given}, {row.identity for row in given}
    # Dynamo runs code that fits again for another layer, and asks no back end. Only of packed weights do we hear then.
    packed = {row.module for row in given if row.kernel is not None}
    alike: dict[object, str] = {}  # looks of a module -> one that did come into a graph, and was left as it was
    without: list[tuple[str, nn.Module, Tensor]] = []  # those that have no row
    weights: list[tuple[str, Tensor]] = []
    for name, module in model.named_modules():
        weight = quantized_weight(module)
        path = path_without_wrappers(name)
        if weight is None:
            continue
        ids = {id(tensor) for tensor in _all(module)}
        if (path in named or not ids.isdisjoint(seen)) and path not in packed:
            alike.setdefault(_looks(module), path)
        if path not in named and (ids.isdisjoint(seen) or (ids & _leaving and told.isdisjoint(ids))):
            without += [] if _is_part(path, weight, weights) else [(path, module, weight)]
        weights.append((path, weight))
    for path, module, weight in without:
        if any(id(tensor) in _leaving for tensor in _all(module)):
            reason = _NO_PRODUCT
        else:
            other = alike.get(_looks(module))
            again = "" if other is None else f" of its own; it may run what was compiled for {other}"
            reason = f"its code did not come into any compiled graph{again}"
        found.append(SiteReport(module=path, declined=reason, identity=id(weight)))
    return found


def _is_part(path: str, tensor: Tensor, weights: Sequence[tuple[str, Tensor]]) -> bool:
    """Whether this belongs to a larger weight of a module around it: zero points that a library keeps in a module of their own."""
    return any(path.startswith(f"{outer}.") and tensor.numel() < weight.numel() for outer, weight in weights)


def quantized_weight(module: nn.Module) -> Tensor | None:
    """The tensor of this very module that holds a quantized weight, None if there is none."""
    parameters = [item for item in module.parameters(recurse=False) if item.dim() >= 2 and _is_low_bit(item)]
    buffers = {name: item for name, item in module.named_buffers(recurse=False) if item.dim() >= 2 and _is_low_bit(item)}
    floats = [name for name, item in _named(module) if item.is_floating_point() and not _is_low_bit(item)]
    scaled = any(word in name for name in floats for word in _SCALES)
    weights = parameters + [
        item
        for item in buffers.values()
        if item.dtype in _ONLY_WEIGHTS
        or scaled
        or (floats and item.dtype in (torch.int8, torch.uint8) and not any(module.children()))
    ]
    return max(weights, key=lambda item: item.numel(), default=None)


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _is_low_bit(tensor: Tensor) -> bool:
    parts = [item for _, item in parts_of(tensor)]
    return any(item.dtype in LOW_BIT and item.dim() >= 2 for item in parts) if parts else tensor.dtype in LOW_BIT


def _all(module: nn.Module) -> list[Tensor]:
    return [item for _, tensor in _named(module) for item in (tensor, *(part for _, part in parts_of(tensor)))]


def _looks(module: nn.Module) -> object:
    return type(module), tuple((name, item.dtype, tuple(item.shape)) for name, item in _named(module))


look_too(rows)
