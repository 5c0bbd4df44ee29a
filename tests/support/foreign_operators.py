"""Operators as quantization libraries register them: their names and what they compute, without the libraries."""

import torch
from torch import Tensor


@torch.library.custom_op("foreign::gemm_4bit", mutates_args=())
def gemm_4bit(x: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
    """x @ W.T with W [N, K] = absmax * codes, pairs of codes in uint8 as [N * K / 2, 1] (as bitsandbytes keeps NF4)."""
    unpacked = torch.stack((codes >> 4, codes & 15), -1).reshape(-1, x.shape[-1]).to(x.dtype) - 8
    return x @ (unpacked * absmax.to(x.dtype)).t()


@gemm_4bit.register_fake
def _(x: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], absmax.shape[0])


@torch.library.custom_op("foreign::qbytes_mm", mutates_args=())
def qbytes_mm(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x @ (codes * scale).T for codes [N, K] of int8 or float8, scale [N, 1] (as optimum-quanto has it)."""
    return x @ (codes.to(x.dtype) * scale.to(x.dtype)).t()


@qbytes_mm.register_fake
def _(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])
