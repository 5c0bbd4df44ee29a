"""AWQ layers (gemm order) become layers that dequantize in their own forward; their stored zero points are the true ones."""

from typing import Any

from torch import nn

from qcompile.errors import WeightError
from qcompile.frontends import grouped
from qcompile.frontends.product import Structure


def prepare(model: nn.Module) -> None:
    """Give AWQ modules of known libraries, and others whose own forward cannot be traced, a traceable forward.

    Modules of other code whose forward Dynamo captures whole are left alone: recognition reads them by value. Raises WeightError
    for contradictory tensors, before anything is changed.
    """
    plans: list[tuple[Any, str, Structure, str]] = []
    known: dict[type, bool] = {}
    for path, module in grouped.candidates(model):
        structure = structure_of(path, module)
        if structure is None:
            continue
        note = ""
        if grouped.of_library(module):
            if not grouped.in_checkpoint_order(module):
                module.qcompile_note = f"{type(module).__name__} keeps its tensors in a kernel's own order: left as it is"
                continue
        else:
            x = grouped.probe(module, structure.k)
            if known.setdefault(type(module), grouped.traceable(module, x)):
                continue
            expected = grouped.own_result(module, x)
            if expected is None or not grouped.agreement(module, structure, (module.qzeros is not None, False), x, expected):
                module.qcompile_note = "its own forward cannot be traced and does not agree with AWQ's gemm order: left as it is"
                continue
            note = "read as AWQ in gemm order, which its own forward confirms"
        plans.append((module, path, structure, note))
    for module, path, structure, note in plans:
        grouped.replace(module, path, structure, (module.qzeros is not None, False), note)


def structure_of(path: str, module: Any) -> Structure | None:
    """The layer's sizes, or None if its qweight is not packed along N."""
    (k, words), (groups, n) = module.qweight.shape, module.scales.shape
    if words * 8 != n:
        return None
    if groups == 0 or k % groups:
        raise WeightError(f"{path}.scales", f"[G, {n}] with G a divisor of K={k}", str(list(module.scales.shape)))
    qzeros = getattr(module, "qzeros", None)
    if qzeros is not None and tuple(qzeros.shape) != (groups, words):
        raise WeightError(f"{path}.qzeros", f"int32 {[groups, words]}", f"{qzeros.dtype} {list(qzeros.shape)}")
    return Structure("awq", 4, k // groups, n, k)
