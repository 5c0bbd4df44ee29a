"""Sizes of tiny transformers models, and tokens for them."""

from typing import Any

import torch

SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": 64,
}
IDS = torch.randint(3, 256, (2, 8), generator=torch.Generator().manual_seed(1))
