"""Fake kernel of our attention operator, and what a platform lacks for it."""

from functools import cache

import torch
from torch import Tensor

from qcompile.kernels import Reasons
from qcompile.platform import Platform
from qcompile.targets import native

NAME = "native.attention"
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


@cache
def _unregistered() -> str | None:
    """None when the operator is there and has its fake kernel; otherwise the reason why not."""
    if not hasattr(torch.ops.qcompile, "native_attention"):
        return "qcompile's C++ kernels were built before this one was added: install qcompile again"
    torch.library.register_fake("qcompile::native_attention", _fake_attention)
    return None


def missing(where: Platform) -> Reasons:
    """What this platform lacks for our attention kernel; empty: it runs here (and the operator has its fake kernel)."""
    reasons = native.missing(where)
    if reasons or where.simulated:
        return reasons
    reason = _unregistered()
    return () if reason is None else (reason,)


def most_queries(where: Platform) -> int:
    """How many query rows our kernel takes; with more, the operator itself calls PyTorch's kernel."""
    if where.simulated or missing(where):
        return FEW_QUERIES if "amx_bf16" in where.isa or "avx2" not in where.isa else 1 << 62
    return int(torch.ops.qcompile.native_attention_most_queries())
