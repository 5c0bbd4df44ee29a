"""Fake kernel of our attention operator, and what a platform lacks for it."""

import torch
from torch import Tensor

from qcompile.hardware import Platform
from qcompile.kernel import OTHER_KERNELS, Reasons
from qcompile.targets import native
from qcompile.targets.native_ops import missing_op

NAME = OTHER_KERNELS["attention"]
FEW_QUERIES = 64  # as kFewQueries of csrc/cpu/binding_attention.cpp
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _fake_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    is_causal: bool,
    *,
    nan_if_unseen: bool = False,
    level: int = -1,
) -> Tensor:
    return torch.empty_like(q)


def missing(where: Platform) -> Reasons:
    """What this platform lacks for our attention kernel; empty: it runs here (and the operator has its fake kernel)."""
    reasons = native.missing(where)
    if reasons or where.simulated:
        return reasons
    reason = missing_op("native_attention", _fake_attention)
    return () if reason is None else (reason,)


def most_queries(where: Platform) -> int:
    """How many query rows our kernel takes; with more, the operator itself calls PyTorch's kernel."""
    if where.simulated or missing(where):
        return FEW_QUERIES if "amx_bf16" in where.isa or "avx2" not in where.isa else 1 << 62
    return int(torch.ops.qcompile.native_attention_most_queries())
