"""Fake kernels of our own CPU operators, so that graphs with them can be traced without running them."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from qcompile.hardware.native_library import missing, wrong_level

_LINE = 64
BLOCK = 16  # outputs
PACKED_LAYOUT = 1  # kPackedLayout of csrc/cpu/packed.h


def packed_bytes(
    bits: int,
    n: int,
    k: int,
    group: int,
    scale_bytes: int,
    *,
    zeros: bool = False,
    book: bool = False,
    outer: bool = False,
    sums: bool | None = None,
    shared: bool = False,
) -> int:
    """Bytes of a packed weight: header, book, codes, scales, zeros, sums and outer scales, as csrc/cpu/packed.h lays them out."""
    group = min(group, k)
    line_k = 32 // bits
    blocks, groups, group_lines = -(-n // BLOCK), -(-k // group), -(-group // line_k)
    meta = blocks * groups * BLOCK
    per_group = (1 if zeros else 0) + (4 if (bits == 8 if sums is None else sums) else 0)
    scales = meta * scale_bytes // (BLOCK if shared else 1)
    rest = (_LINE if book else 0) + (blocks * BLOCK * 4 if outer else 0)
    return _LINE + blocks * groups * group_lines * _LINE + scales + meta * per_group + rest


def _fake_int4_pack(codes: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> Tensor:
    n, k = codes.shape
    return codes.new_empty((packed_bytes(4, n, k, group, scales.element_size(), zeros=zeros is not None),), dtype=torch.uint8)


def _fake_int8_pack(codes: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> Tensor:
    n, k = codes.shape
    return codes.new_empty((packed_bytes(8, n, k, group, scales.element_size(), zeros=zeros is not None),), dtype=torch.uint8)


def _fake_book4_pack(codes: Tensor, scales: Tensor, outer: Tensor | None, book: Tensor, group: int) -> Tensor:
    n, k = codes.shape
    size = packed_bytes(4, n, k, group, scales.element_size(), book=True, outer=outer is not None)
    return codes.new_empty((size,), dtype=torch.uint8)


def _fake_fp8_pack(codes: Tensor, scales: Tensor, outer: Tensor | None, group: int) -> Tensor:
    n, k = codes.shape
    shared = scales.shape[0] != n
    size = packed_bytes(8, n, k, group, scales.element_size(), outer=outer is not None, sums=False, shared=shared)
    return codes.new_empty((size,), dtype=torch.uint8)


def _fake_fp8_linear(
    x: Tensor,
    packed: Tensor,
    perm: Tensor | None,
    bias: Tensor | None,
    n: int,
    k: int,
    group: int,
    e5m2: bool = False,
    *,
    level: int = -1,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


def _fake_round_floats(x: Tensor, scale: Tensor | None, kind: int, narrow: bool, *, level: int = -1) -> Tensor:
    return x.new_empty(x.shape)


def _fake_linear(
    x: Tensor, packed: Tensor, perm: Tensor | None, bias: Tensor | None, n: int, k: int, group: int, *, level: int = -1
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


def _fake_rounded_linear(
    x: Tensor,
    packed: Tensor,
    perm: Tensor | None,
    bias: Tensor | None,
    act_scale: Tensor | None,
    act_zero: Tensor | None,
    n: int,
    k: int,
    group: int,
    rounding: int,
    divisor: float,
    low: float,
    narrow: bool,
    few: int = 0,
    *,
    level: int = -1,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


@cache
def missing_ops() -> str | None:
    """None when our operators are loaded and have their fake kernels; otherwise the reason why not."""
    reason = missing()
    if reason is not None:
        return reason
    torch.library.register_fake("qcompile::native_int4_pack", _fake_int4_pack)
    torch.library.register_fake("qcompile::native_int8_pack", _fake_int8_pack)
    torch.library.register_fake("qcompile::native_book4_pack", _fake_book4_pack)
    torch.library.register_fake("qcompile::native_book4_linear", _fake_linear)
    torch.library.register_fake("qcompile::native_fp8_pack", _fake_fp8_pack)
    torch.library.register_fake("qcompile::native_fp8_linear", _fake_fp8_linear)
    torch.library.register_fake("qcompile::native_round_floats", _fake_round_floats)
    torch.library.register_fake("qcompile::native_int4_linear", _fake_linear)
    torch.library.register_fake("qcompile::native_int8_a16_linear", _fake_linear)
    torch.library.register_fake("qcompile::native_int8_linear", _fake_rounded_linear)
    torch.library.register_fake("qcompile::native_int4_a8_linear", _fake_rounded_linear)
    return wrong_level()


@cache
def missing_op(name: str, fake: Callable[..., Tensor]) -> str | None:
    """None when the library has an operator that was added later, which then gets its fake kernel; otherwise why not."""
    if not hasattr(torch.ops.qcompile, name):
        return "qcompile's C++ kernels were built before this one was added: install qcompile again"
    torch.library.register_fake(f"qcompile::{name}", fake)
    return None


def levels() -> tuple[str, ...]:
    """Instruction-set levels of this machine, best first; empty without the compiled operators."""
    if missing_ops() is not None:
        return ()
    return tuple(str(torch.ops.qcompile.native_isa_levels()).split(","))
