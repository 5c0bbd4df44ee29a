"""Four-bit values in 32-bit words, the lowest nibble first: the layout that zentorch and the XPU kernels share."""

import torch
from torch import Tensor


def nibbles(values: Tensor) -> Tensor:
    """int8 values [R, C] of which the low 4 bits count, C % 8 == 0 -> int32 [R, C/8], the lowest nibble first (little-endian)."""
    pairs = (values[:, 0::2] & 15) | (values[:, 1::2] << 4)
    return pairs.reshape(-1).view(torch.int32).reshape(values.shape[0], -1)  # one row alone may have any stride
