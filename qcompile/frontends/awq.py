"""AWQ layers (gemm order) become layers that dequantize in their own forward; their stored zero points are the true ones."""

from typing import Any

import torch
from torch import nn

from qcompile.errors import QCompileError, WeightError
from qcompile.frontends import grouped, notes
from qcompile.frontends.stored_checks import FLOATS, need_finite, need_tensor
from qcompile.operators import Structure

Plan = tuple[Any, str, Structure, str]
DISAGREES = "its own forward cannot be traced and does not agree with AWQ's gemm order: left as it is"


def prepare(model: nn.Module, strict: bool = False) -> None:
    """Give AWQ modules of known libraries, and others whose own forward cannot be traced, a traceable forward.

    Modules of other code whose forward Dynamo captures whole are left alone: recognition reads them by value. A layer whose tensors
    contradict each other stays as it was, and its note says why; with `strict` it raises WeightError before anything is changed.
    """
    plans: list[Plan] = []
    known: dict[type, bool] = {}
    for path, module in grouped.candidates(model):
        try:
            structure = structure_of(path, module)
            if structure is not None:
                check(path, module, structure)
        except QCompileError as error:
            if strict:
                raise
            grouped.left_as_it_is(module, error, "awq")
            continue
        plan = None if structure is None else _plan(path, module, structure, known)
        if plan is not None:
            plans.append(plan)
    for module, path, structure, note in plans:
        grouped.replace(module, path, structure, (getattr(module, "qzeros", None) is not None, False), note)


def _plan(path: str, module: Any, structure: Structure, known: dict[type, bool]) -> Plan | None:
    """What becomes of one layer; None if it stays as it is."""
    if grouped.of_library(module):
        if not grouped.in_checkpoint_order(module):
            grouped.left_in_kernels_order(module, "awq", structure.n, structure.k)
            return None
        return module, path, structure, ""
    x = grouped.probe(module, structure.k)
    if known.setdefault(type(module), grouped.traceable(module, x)):
        return None
    expected = grouped.own_result(module, x)
    if expected is None or not grouped.agreement(
        module, structure, (getattr(module, "qzeros", None) is not None, False), x, expected
    ):
        notes.decline(module, notes.Declined(DISAGREES, "awq", structure.n, structure.k))
        return None
    return module, path, structure, "read as AWQ in gemm order, which its own forward confirms"


def structure_of(path: str, module: Any) -> Structure | None:
    """The layer's sizes, or None if its qweight is not packed along N."""
    (k, words), (groups, n) = module.qweight.shape, module.scales.shape
    if words * 8 != n:
        return None
    if groups == 0 or k == 0 or k % groups:
        raise WeightError(f"{path}.scales", f"[G, {n}] with G a divisor of K={k}", str(list(module.scales.shape)))
    return Structure("awq", 4, k // groups, n, k)


def check(path: str, module: Any, structure: Structure) -> None:
    """WeightError unless scales and zero points are what AWQ has; values are looked at where there are any (not on meta)."""
    groups, qzeros = structure.k // structure.group, getattr(module, "qzeros", None)
    need_tensor(f"{path}.scales", module.scales, FLOATS, (groups, structure.n))
    if qzeros is not None:
        need_tensor(f"{path}.qzeros", qzeros, (torch.int32,), (groups, structure.n // 8))
    need_finite(f"{path}.scales", module.scales)
