"""Computes a large matrix a strip of rows at a time: what it is made of is never there as a whole, and stays in the cache."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.formats.words import unpack
from qcompile.graph.nodes import value
from qcompile.graph.slices import Root, Slices, pieces
from qcompile.torch_internals.tensors import OpOverload

_LARGE, _STRIP = 1 << 22, 1 << 19  # elements


def is_foreign(node: fx.Node) -> bool:
    """Whether an operator that packs for a kernel stands here, ours or another library's, which takes its arguments whole."""
    target: Any = node.target
    if not isinstance(target, OpOverload) or target is unpack:
        return False
    return target.namespace not in {"aten", "prims", "prim"} or target._schema.name.startswith("aten::_convert_weight_to_")


def is_large_matrix(node: fx.Node) -> bool:
    """Whether the node computes a contiguous matrix that is worth strips."""
    fake = value(node)
    if node.op != "call_function" or is_foreign(node) or not isinstance(fake, Tensor) or fake.dim() != 2:
        return False
    return all(type(size) is int for size in fake.shape) and fake.numel() > _LARGE and fake.is_contiguous()


def in_strips(node: fx.Node, feed: Mapping[fx.Node, Tensor]) -> Tensor:
    """The value of a node [N, K] from those of the inputs that it is computed from."""
    n, k = value(node).shape
    slices = Slices([Root(node, {"n": 0})], {"n": n}, feed)
    result: Tensor | None = None
    for span in pieces(n, max(1, _STRIP // k), slices.align("n")):
        (strip,) = slices.evaluate({"n": span})
        if result is None:
            result = torch.empty((n, k), dtype=strip.dtype, device=strip.device)
        result[span.start : span.stop] = strip
    assert result is not None
    return result
