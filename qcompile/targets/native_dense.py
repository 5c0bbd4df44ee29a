"""Fake kernel of our dense product for few rows, and what a platform lacks for it."""

import torch
from torch import Tensor

from qcompile.hardware import Platform
from qcompile.kernel import OTHER_KERNELS, Reasons
from qcompile.targets import native
from qcompile.targets.native_ops import missing_op

NAME = OTHER_KERNELS["dense"]
FEW_ROWS = 2  # as kMostDenseRows of csrc/cpu/dense.h: above, the operator itself calls PyTorch's product


def _fake_dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, level: int = -1) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def missing(where: Platform) -> Reasons:
    """What this platform lacks for our dense product; empty: it runs here (and the operator has its fake kernel)."""
    reasons = native.missing(where)
    if reasons or where.simulated:
        return reasons
    reason = missing_op("native_dense_linear", _fake_dense_linear)
    level = "" if reason is not None else str(torch.ops.qcompile.native_isa(-1))
    if level == "generic":
        reason = "is not faster than PyTorch without the vector instructions of AVX2"
    elif level.startswith("neon"):
        reason = "was not compared with PyTorch on an Arm processor yet"
    return () if reason is None else (reason,)


def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias by our operator: x [..., K], weight [N, K], bias [N] or None, all of one dtype."""
    result: Tensor = torch.ops.qcompile.native_dense_linear.default(x, weight, bias)
    return result
