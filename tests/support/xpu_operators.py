"""The XPU operators emulated on the CPU from their contract, in plain torch; operands are read as raw memory, as kernels do."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qcompile.targets.xpu import GEMM

GEMM_SCHEMA = (
    "int4_gemm_w4a16(Tensor A, Tensor B, Tensor? bias, Tensor B_scale, Tensor B_zp, int group_size, Tensor? g_idx) -> Tensor"
)


def raw(tensor: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The first `count` elements of the tensor's memory, whatever shape and strides it claims."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0).view(dtype)[:count]


def unpacked(words: Tensor) -> Tensor:
    """int32 [R, C] -> values 0 .. 15 [R, 8 C], the lowest nibble first."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words[:, :, None] >> shifts) & 15).reshape(words.shape[0], -1)


def gemm(a: Tensor, b: Tensor, bias: Tensor | None, scale: Tensor, zp: Tensor, group: int, g_idx: Tensor | None) -> Tensor:
    if a.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("int4_gemm_w4a16: A must be half or bfloat16")
    if b.stride(-2) != 1:
        raise RuntimeError("Int4 weight must be in NT format")
    if not scale.is_contiguous():
        raise RuntimeError("B_scale must be contiguous")
    n, k = b.shape[1], b.shape[0] * 8
    groups = k // group
    codes = unpacked(raw(b, n * k // 8, torch.int32).view(n, k // 8)).float()
    if zp.dim() == 1:
        zeros = torch.full((groups, n), float(raw(zp, 1, torch.int8).item()))
    else:
        zeros = unpacked(raw(zp, groups * n // 8, torch.int32).view(groups, n // 8)).float()
    scales = raw(scale, groups * n, scale.dtype).view(groups, n).float()
    dense = (codes.view(n, groups, group) - zeros.t()[:, :, None]) * scales.t()[:, :, None]
    x = a if g_idx is None else a.index_select(-1, g_idx)
    y = x.float() @ dense.view(n, k).t()
    return (y if bias is None else y + bias.float()).to(a.dtype)


def int4pack(x: Tensor, weight: Tensor, group: int, scale: Tensor, zeros: Tensor) -> Tensor:
    n, k = weight.shape[0], weight.shape[1] * 8
    if x.dim() != 2 or not weight.is_contiguous() or zeros.dtype != torch.int8 or zeros.shape != (k // group, n):
        raise RuntimeError("_weight_int4pack_mm_with_scales_and_zeros: wrong operands")
    codes = unpacked(weight).float().view(n, k // group, group)
    dense = (codes - zeros.float().t()[:, :, None]) * scale.float().t()[:, :, None]
    return (x.float() @ dense.view(n, k).t()).to(x.dtype)


@contextmanager
def emulated(schema: str = GEMM_SCHEMA) -> Generator[None]:
    """Both operators run on CPU tensors while the context lasts."""
    library: Any = torch.library.Library("_xpu_C", "FRAGMENT")
    library.define(schema)
    library.impl("int4_gemm_w4a16", gemm, "CPU")
    native: Any = torch.library.Library("aten", "IMPL")
    native.impl("_weight_int4pack_mm_with_scales_and_zeros", int4pack, "CPU")
    try:
        yield
    finally:
        library._destroy()
        native._destroy()
        namespace: Any = getattr(torch.ops, GEMM.namespace)
        if hasattr(namespace, GEMM.name):
            delattr(namespace, GEMM.name)
