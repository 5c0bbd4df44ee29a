"""ggml's format Q4_0: groups of 32 along K, each a float16 scale and 16 bytes of codes + 8, which is 4.5 bits a weight.

https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block_q4_0)
"""

import torch
from torch import Tensor

GROUP = 32
BLOCK = 2 + GROUP // 2  # bytes


def q4_0(codes: Tensor, scales: Tensor, group: int) -> Tensor:
    """uint8 [N, K / 32 * 18] of signed codes int8 [N, K] and scales [N, K / group], each repeated for its groups of 32."""
    n, k = codes.shape
    values = (codes + 8).byte().reshape(n, k // GROUP, GROUP)
    pairs = values[..., : GROUP // 2] | (values[..., GROUP // 2 :] << 4)
    repeated = scales.to(torch.float16).repeat_interleave(group // GROUP, dim=1)
    return torch.cat([repeated.unsqueeze(-1).contiguous().view(torch.uint8), pairs], dim=-1).reshape(n, -1)
