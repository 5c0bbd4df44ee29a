"""Slow pure-Python packers and dequantizations, written down from the formats' descriptions: lists of Python integers only."""

from collections.abc import Sequence

import torch
from torch import Tensor

Matrix = list[list[int]]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds column 8 c + AWQ_ORDER[i]
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def dense_words(row: Sequence[int], bits: int) -> list[int]:
    """One row as signed 32-bit words: value i at bit i * bits of one long little-endian number."""
    number = sum(value << (index * bits) for index, value in enumerate(row))
    return [as_signed((number >> (32 * word)) & 0xFFFFFFFF) for word in range(-(-len(row) * bits // 32))]


def awq_words(row: Sequence[int]) -> list[int]:
    """One row as signed 32-bit words in AWQ's nibble order."""
    words: list[int] = []
    for start in range(0, len(row), 8):
        words.append(as_signed(sum(row[start + AWQ_ORDER[place]] << (4 * place) for place in range(8))))
    return words


def as_signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def int32(matrix: Matrix) -> Tensor:
    return torch.tensor(matrix, dtype=torch.int32)


def weight(codes: Matrix, zeros: Matrix, scales: Sequence[Sequence[float]], groups: Sequence[int]) -> Tensor:
    """W[n][k] = (codes[n][k] - zeros[n][g]) * scales[n][g] with g = groups[k]; float64 [N, K]."""
    rows = [[(code - zeros[n][groups[k]]) * scales[n][groups[k]] for k, code in enumerate(row)] for n, row in enumerate(codes)]
    return torch.tensor(rows, dtype=torch.float64)
