"""Recovers codes from any dequantization code: divided by its scales, the dense weight lies on an integer lattice.

For a weight W [N, K] and a candidate scale S expanded along K, q = W / S is an integer matrix exactly if S is the scale. The
integers need `bits` bits when every group's span fits, so (codes, zeros) follow from q alone, without knowing the storage.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.check import rounded_to, tolerance
from qcompile.meaning import row_pieces


@dataclass(frozen=True, slots=True)
class Found:
    """scales: index of the candidate and how it lies: "ng" [N, G], "gn" [G, N], "one" element, or "unit" (no scale)."""

    candidate: int
    layout: str
    group: int
    bits: int
    symmetric: bool
    index: int | None = None  # candidate number of the group index [K] (act-order)


def layouts(shape: Sequence[int], n: int, k: int) -> Iterator[tuple[str, int]]:
    """(layout, group) for every way in which a tensor of this shape can be a scale of an [N, K] weight."""
    sizes = [size for size in shape if size != 1]
    count = 1
    for size in sizes:
        count *= size
    if count == 1 or sizes == [n]:
        yield ("one" if count == 1 else "ng"), k
        return
    if len(sizes) == 2:
        if sizes[0] == n and k % sizes[1] == 0:
            yield "ng", k // sizes[1]
        if sizes[1] == n and k % sizes[0] == 0:
            yield "gn", k // sizes[0]
    elif len(sizes) == 1 and n == 1 and k % sizes[0] == 0:
        yield "ng", k // sizes[0]


def arrange(scale: Tensor, layout: str, n: int, k: int, group: int) -> Tensor:
    """A candidate as scales [N, G]. "unit": `scale` is the dense weight, whose scales are all 1; "one": a single element."""
    groups = k // group
    if layout == "unit":
        return torch.ones_like(scale[:, :groups], dtype=torch.float32)
    if layout == "one":
        return scale.reshape(1, 1).expand(n, groups)
    return scale.reshape(groups, n).t() if layout == "gn" else scale.reshape(n, groups)


def codes_and_zeros(dense: Tensor, scales: Tensor, group: int, symmetric: bool, perm: Tensor | None) -> tuple[Tensor, Tensor]:
    """(codes int8 [N, K], zeros int8 [N, G]) of a weight that lies on the lattice; the zeros are 0 if symmetric."""
    stored = dense if perm is None else dense.index_select(1, perm)
    grouped = stored.to(torch.float32).unflatten(1, (-1, group))
    steps = torch.round(grouped / _safe(scales).unsqueeze(-1))
    zeros = torch.zeros_like(steps.amin(-1)) if symmetric else (-steps.amin(-1)).clamp(min=0.0)
    return (steps + zeros.unsqueeze(-1)).flatten(1).to(torch.int8), zeros.to(torch.int8)


def _safe(scales: Tensor) -> Tensor:
    wide = scales.to(torch.float32)
    return torch.where(wide == 0, torch.ones_like(wide), wide)


def find(dense: Tensor, candidates: Sequence[Tensor]) -> Found | str:
    """How `dense` [N, K] lies on the lattice of one of the candidate tensors, with the fewest bits; or why it does not."""
    n, k = dense.shape
    rounded = rounded_to(dense)
    best: Found | None = None
    for number, candidate in enumerate([*candidates, None]):
        for layout, group in layouts(candidate.shape, n, k) if candidate is not None else (("unit", k),):
            if candidate is not None and not candidate.is_floating_point():
                continue
            scales = dense if candidate is None else candidate
            for index in (None, *_group_indices(candidates, k, k // group)):
                perm = None if index is None else torch.argsort(candidates[index].long(), stable=True)
                width = _width(dense, rounded, arrange(scales, layout, n, k, group), group, perm)
                if width is not None and (best is None or width[0] < best.bits):
                    best = Found(number, layout, group, width[0], width[1], index)
    return best if best is not None else "divided by each of its scales the weight does not become integers of 8 bits or fewer"


def _group_indices(candidates: Sequence[Tensor], k: int, groups: int) -> list[int]:
    """Which candidates may be a group index: integers [K] that name every group K / G times."""
    found = []
    for number, tensor in enumerate(candidates):
        if tensor.dtype in (torch.int32, torch.int64) and tuple(tensor.shape) == (k,) and groups > 1:
            counts = torch.bincount(tensor.long().clamp(min=0), minlength=groups)
            if counts.numel() == groups and bool((counts == k // groups).all()):
                found.append(number)
    return found


def _width(dense: Tensor, rounded: torch.dtype, scales: Tensor, group: int, perm: Tensor | None) -> tuple[int, bool] | None:
    """(bits, symmetric) of dense / scales, or None where that is not an integer matrix of 8 bits or fewer."""
    n, k = dense.shape
    if not bool(torch.isfinite(scales).all()):
        return None
    low, high, span = 0, 0, 0
    for piece in row_pieces(n, k):
        part = dense[piece].to(torch.float32)
        part = part if perm is None else part.index_select(1, perm)
        steps = part.reshape(part.shape[0], -1, group) / _safe(scales[piece])[:, :, None]
        whole = torch.round(steps)
        if not bool(((steps - whole).abs() <= tolerance(steps, 1.0, rounded).clamp(max=0.5)).all()):
            return None
        low, high = min(low, int(whole.min())), max(high, int(whole.max()))
        least = whole.amin(-1).clamp(max=0)
        span = max(span, int((whole.amax(-1) - least).max()))
        if high - low > 510 or span > 255:
            return None
    if low >= -8 and high <= 7:
        return 4, True
    if span <= 15 and low >= -16:
        return 4, False
    return (8, True) if low >= -128 and high <= 127 else None
