"""What a storage format's file is asked and what it answers: a cone's leaves, and which quantized weight they may hold.

A proposal is only a guess. `recognize` runs the cone and the proposal and accepts it only if they agree element by element, so a
reader should propose every convention that fits the leaves' dtypes and shapes (GPTQ v1 and v2, square weights both ways round).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompile.meaning import Operands


@dataclass(frozen=True, slots=True)
class Leaf:
    """A constant that the cone reads: name (path of the parameter), dtype and static shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cone:
    """The sub-graph that computes one weight [N, K] from constants only, as readers see it.

    leaves  in the order in which `unpack` of a proposal receives their tensors
    op      the operator, if the cone is that one call with leaves as tensor arguments, and its non-tensor arguments by name;
            the tensor arguments appear in `arguments` as their index in `leaves` wrapped in LeafIndex
    """

    leaves: tuple[Leaf, ...]
    n: int
    k: int
    op: Any = None
    arguments: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LeafIndex:
    """Stands for a tensor argument of `Cone.op`: the position of the leaf in `Cone.leaves`."""

    index: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """One reading of a cone's leaves.

    format  the storage format's name for the report, e.g. "compressed-tensors pack-quantized"
    unpack  leaf tensors -> Operands (codes, scales, zeros, perm, outer, offsets, outer_offset) in the convention of
            meaning.QuantizedWeight; straight-line torch code (no data-dependent Python, no .item()), because it is also traced with
            fx proxies into the graph
    """

    format: str
    bits: int
    group: int
    unpack: Callable[[Sequence[Tensor]], Operands]
    symmetric: bool = True
    act_order: bool = False
    codebook: str = ""
    rows: int = 1  # outputs that share their scales, in blocks from the first on
    offset: bool = False
    outer_group: int = 0
