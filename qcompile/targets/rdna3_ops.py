"""The operator `qcompile::gptq_gemm_rdna3` as Python sees it: schema, fake kernel, and the packing of its arguments."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from qcompile.errors import MissingOperatorError
from qcompile.hardware.native_library import missing
from qcompile.operators import LIBRARY

NAME = "gptq_gemm_rdna3"
SCHEMA = "(Tensor a, Tensor b_q_weight, Tensor b_qzeros, Tensor b_scales, Tensor b_g_idx, bool use_v2_format) -> Tensor"

WORD = 8  # nibbles of an int32
# Bit of q[0] .. q[7] in a word: the even ones in the lower half, so that a mask of 0x000F000F yields a pair of neighbours.
SHUFFLED_BITS = (0, 16, 4, 20, 8, 24, 12, 28)
PLAIN_BITS = (0, 4, 8, 12, 16, 20, 24, 28)
SYMMETRIC_STORED_ZERO = 0x77777777  # eight times 7: format v1 adds 1, the zero point of codes 0 .. 15 is 8

_library: Any = torch.library


def _fake(a: Tensor, b_q_weight: Tensor, *_: object) -> Tensor:
    return a.new_empty((a.shape[0], b_q_weight.shape[1]))


def _absent(*_: object) -> Tensor:
    raise MissingOperatorError(f"qcompile::{NAME}")


@cache
def operator() -> Any:
    """The operator with its fake kernel; without the compiled library a definition that can be traced but not run."""
    if missing() is not None:
        library: Any = LIBRARY
        library.define(NAME + SCHEMA)
        library.impl(NAME, _absent, "CompositeExplicitAutograd")
    _library.register_fake(f"qcompile::{NAME}", _fake, lib=LIBRARY)
    return torch.ops.qcompile.gptq_gemm_rdna3.default


def has_device_code() -> bool:
    """Whether the compiled library holds the kernels for gfx1100 (it was built with a torch for ROCm)."""
    return missing() is None and bool(torch.ops.qcompile.rdna3_device_code())


def packed_nibbles(nibbles: Tensor, bits: tuple[int, ...]) -> Tensor:
    """int32 words of eight nibbles each: `nibbles` int32 [R, 8, C], the one at index i goes to bit bits[i]; returns [R, C]."""
    words = nibbles[:, 0] << bits[0]
    for index in range(1, WORD):
        words = words | (nibbles[:, index] << bits[index])
    return words


def packed_codes(codes: Tensor, n: int, k: int, offset: int) -> Tensor:
    """b_q_weight int32 [K/8, N] of codes int8 [N, K]; code + offset must lie in 0 .. 15."""
    nibbles = codes.t().to(torch.int32) + offset
    return packed_nibbles(nibbles.reshape(k // WORD, WORD, n), SHUFFLED_BITS).contiguous()


def packed_zeros(zeros: Tensor, n: int, groups: int, offset: int) -> Tensor:
    """b_qzeros int32 [G, N/8] of zeros int8 [N, G]; zero + offset must lie in 0 .. 15."""
    nibbles = zeros.to(torch.int32) + offset
    words = packed_nibbles(nibbles.reshape(n // WORD, WORD, groups), PLAIN_BITS)
    return words.t().contiguous()


def symmetric_zeros(like: Tensor, n: int, groups: int) -> Tensor:
    """b_qzeros of a weight without zero points, for format v1, on the device of `like`."""
    return like.new_full((groups, n // WORD), SYMMETRIC_STORED_ZERO, dtype=torch.int32)
