"""Random weights of every stored kind, and the bytes that their checkpoint holds, for bench/gemm.py."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from qcompile.codebooks import NUMBERS
from qcompile.kernel import inner_bits
from qcompile.meaning import QuantizedWeight, group_count

BLOCK = 128  # outputs and values of K that share a scale in fp8-block
SUPER = 256  # values of K that share an outer scale in k-quants


def integers(n: int, k: int, bits: int, group: int, *, zeros: bool = False) -> QuantizedWeight:
    """Codes of so many bits with bfloat16 scales."""
    generator = torch.Generator().manual_seed(n + k)
    low = 0 if zeros and bits < 8 else -(1 << (bits - 1))
    codes = torch.randint(low, low + (1 << bits), (n, k), generator=generator).to(torch.int8)
    count = group_count(k, group)
    points = torch.randint(0, (1 << min(bits, 4)) + 1, (n, count), generator=generator).to(torch.int8) if zeros else None
    return QuantizedWeight(codes, _steps(n, count).bfloat16(), points, bits, group)


def _steps(n: int, count: int) -> Tensor:
    return torch.rand(n, count, generator=torch.Generator().manual_seed(n)) * 0.02 + 0.001


def _fp4(n: int, k: int, group: int, kind: torch.dtype, *, outer: bool) -> QuantizedWeight:
    codes = torch.randint(0, 16, (n, k), generator=torch.Generator().manual_seed(n + k)).to(torch.int8)
    scales = (_steps(n, group_count(k, group)) * (2e4 if outer else 1.0)).to(kind)
    level = torch.full((n, 1), 5e-5) if outer else None
    return QuantizedWeight(codes, scales, None, 4, group, codebook="e2m1", outer=level)


def _fp8(n: int, k: int, group: int, scales: Tensor, kind: str = "e4m3") -> QuantizedWeight:
    values = torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)) * 64
    return QuantizedWeight(values.to(NUMBERS[kind]).view(torch.int8), scales, None, 8, group, codebook=kind)


def _fp8_blocks(n: int, k: int) -> QuantizedWeight:
    blocks = _steps(group_count(n, BLOCK), group_count(k, BLOCK)) * 1e-2
    return _fp8(n, k, BLOCK, blocks.repeat_interleave(BLOCK, 0)[:n])


def _k_quant(n: int, k: int, bits: int, group: int, *, offsets: bool) -> QuantizedWeight:
    """As ggml's Q4_K (6-bit scales and offsets for 32 values) and Q6_K (8-bit scales for 16): float16 for 256 values above them."""
    generator = torch.Generator().manual_seed(n + k)
    low = 0 if offsets else -(1 << (bits - 1))
    codes = torch.randint(low, low + (1 << bits), (n, k), generator=generator).to(torch.int8)
    shape, outers = (n, group_count(k, group)), (n, group_count(k, SUPER))
    inner = torch.randint(1, 64, shape, generator=generator).to(torch.uint8) if offsets else None
    scales = inner if inner is not None else torch.randint(-128, 128, shape, generator=generator).to(torch.int8)
    outer = (torch.rand(outers, generator=generator) * 1e-4 + 1e-5).half()
    shift = -outer if offsets else None
    return QuantizedWeight(codes, scales, None, bits, group, outer=outer, offsets=inner, outer_offset=shift, outer_group=SUPER)


def _q8_0(n: int, k: int) -> QuantizedWeight:
    """As ggml's Q8_0: float16 scales for 32 values."""
    plain = integers(n, k, 8, 32)
    return replace(plain, scales=plain.scales.half())


# (N, K) -> the weight.
FORMATS: dict[str, Callable[[int, int], QuantizedWeight]] = {
    "int4": lambda n, k: integers(n, k, 4, min(128, k)),
    "int4-zeros": lambda n, k: integers(n, k, 4, min(128, k), zeros=True),
    **{f"int{bits}": partial(integers, bits=bits, group=128) for bits in (2, 3, 5, 6)},
    "q4_k": partial(_k_quant, bits=4, group=32, offsets=True),
    "q6_k": partial(_k_quant, bits=6, group=16, offsets=False),
    "int8": lambda n, k: integers(n, k, 8, k),
    "q8_0": _q8_0,
    "nvfp4": lambda n, k: _fp4(n, k, 16, torch.float8_e4m3fn, outer=True),
    "mxfp4": lambda n, k: _fp4(n, k, 32, torch.float8_e8m0fnu, outer=False),
    "fp8": lambda n, k: _fp8(n, k, k, (_steps(n, 1) * 1e-2).bfloat16()),
    "fp8-block": _fp8_blocks,
    "mxfp8": lambda n, k: _fp8(
        n, k, 32, torch.exp2(torch.floor(torch.log2(_steps(n, group_count(k, 32))))).to(torch.float8_e8m0fnu)
    ),
}


def stored_bytes(weight: QuantizedWeight) -> int:
    """What any kernel has to read: codes of `bits` bits, each different scale as it is stored, zero points of a byte."""
    scales = weight.scales
    rows = BLOCK if weight.n > BLOCK and bool((scales[:BLOCK] == scales[:1]).all()) else 1
    sizes = scales.numel() // rows * scales.element_size() + (scales.numel() if weight.zeros is not None else 0)
    if weight.outer_group and weight.outer is not None:
        inner = inner_bits(weight.scales, weight.offsets)
        fields = 1 if weight.offsets is None else 2
        sizes = scales.numel() * fields * inner // 8 + weight.outer.numel() * fields * 2
    return weight.codes.numel() * weight.bits // 8 + sizes + (4 if weight.outer is not None and not weight.outer_group else 0)
