"""The dense model that a prepared one stands for: every packed layer as a plain nn.Linear, for comparison."""

from typing import Any

import torch
from torch import nn

from qcompile.frontends.linear import FRONT_DOOR_CLASSES
from qcompile.operators import dense_weight


def make_dense(model: Any, dtype: torch.dtype) -> int:
    """Replace, in place, every layer that the front door prepared by nn.Linear with its dequantized weight; how many there were.

    Activations are not rounded, also where the checkpoint asks for it: this is what a dense run of the checkpoint computes.
    """
    packed = [(path, module) for path, module in model.named_modules() if isinstance(module, FRONT_DOOR_CLASSES)]
    for path, module in packed:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, name, _dense(module, dtype))
    return len(packed)


def _dense(module: Any, dtype: torch.dtype) -> nn.Linear:
    packed, scales, zeros, g_idx = module.stored()
    with torch.no_grad():
        weight = dense_weight(module.structure, packed, scales, zeros, g_idx, dtype)
    linear = nn.Linear(module.structure.k, module.structure.n, bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
    return linear
