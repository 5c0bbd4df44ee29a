"""Fake kernels of our own CPU operators, so that graphs with them can be traced without running them."""

from functools import cache

import torch

from qcompile.native import missing

_LINE = 64
_BLOCK = 16


def packed_int4_bytes(n: int, k: int, group: int, scale_bytes: int, *, zeros: bool) -> int:
    """Size of a tensor of `native_int4_pack`: header, codes, scales and zeros, as csrc/cpu/int4.h lays them out."""
    group = min(group, k)
    blocks, groups, group_lines = -(-n // _BLOCK), -(-k // group), -(-group // 8)
    codes = blocks * groups * group_lines * _LINE
    meta = blocks * groups * _BLOCK
    return _LINE + codes + meta * scale_bytes + (meta if zeros else 0)


def _fake_int4_pack(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, group: int
) -> torch.Tensor:
    n, k = codes.shape
    size = packed_int4_bytes(int(n), int(k), group, scales.element_size(), zeros=zeros is not None)
    return codes.new_empty((size,), dtype=torch.uint8)


def _fake_int4_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    perm: torch.Tensor | None,
    bias: torch.Tensor | None,
    n: int,
    k: int,
    group: int,
    *,
    level: int = -1,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n))


@cache
def missing_ops() -> str | None:
    """None when our operators are loaded and have their fake kernels; otherwise the reason why not."""
    reason = missing()
    if reason is not None:
        return reason
    torch.library.register_fake("qcompile::native_int4_pack", _fake_int4_pack)
    torch.library.register_fake("qcompile::native_int4_linear", _fake_int4_linear)
    return None


def levels() -> tuple[str, ...]:
    """Instruction-set levels of this machine, best first; empty without the compiled operators."""
    if missing_ops() is not None:
        return ()
    return tuple(str(torch.ops.qcompile.native_isa_levels()).split(","))
