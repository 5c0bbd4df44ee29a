"""Which operators AOTAutograd takes apart on the way to our passes."""

from typing import Any

import torch

from qcompile.operators import TAKEN_APART
from qcompile.torch_internals import aot, inductor

# Inductor turns products of one row into sums of products while tracing; we need to see the products.
_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::mv", "aten::linear")


def for_inductor() -> dict[Any, Any]:
    """Inductor's table without those that hide a matrix product, and our own."""
    table = inductor.decomposition_table()
    plain = {target: rule for target, rule in table.items() if getattr(target, "name", str)().split(".")[0] not in _PRODUCTS}
    return plain | TAKEN_APART


def for_eager() -> dict[Any, Any]:
    """What graphs need that are run as they are: transpositions in one spelling, and our own."""
    return {**aot.decompositions_of([torch.ops.aten.t, torch.ops.aten.transpose]), **TAKEN_APART}
