"""Compares a weight that a graph computes with the one that was read, and makes random contents of stored weights."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qcompile.graph.nodes import LOW_BIT
from qcompile.meaning import Operands, dense_of, group_count, groups_each, in_groups, row_pieces, scales_of, ungrouped

# Rounding of one operation, 2^-(significant bits); a cone may round two or three times (scale, product, sum).
_UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
_ROUNDINGS = 2.5
# Code like w * s - z * s rounds values as large as the group's largest and leaves that error in the small differences, too.
_GROUP_ROUNDINGS = 4.0
_STEP_SHARE = 0.2  # of one code step: a weight off by one code is five times outside
# Numbers below the least normal one are rounded to multiples of the least of all: harmless beside a row's large weights.
_LEAST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float32: 2.0**-149}
_ROW_SHARE = 2.0**-10
_EXACT = 2.0**-20  # some roundings of float32


# (our weight [N, K], scales [N, G], offsets [N, G] or None) -> by how much each may differ.
_Allowed = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def disagreement(
    dense: Tensor, operands: Operands, group: int, codebook: str, *, adds: bool = False, outer_group: int = 0
) -> str | None:
    """None if `dense` [N, K] is the operands' weight, up to the rounding of dense's dtype; otherwise what differs.

    adds: the code adds or subtracts numbers that may be larger than their sum, so that small weights may carry larger errors.
    """

    def allowed(ours: Tensor, scales: Tensor, _: Tensor | None) -> Tensor:
        rounded = rounded_to(dense)
        magnitude = ours.abs()
        least = torch.clamp(magnitude.amax(-1, keepdim=True) * _ROW_SHARE, max=_LEAST.get(rounded, 0.0))
        single = torch.maximum(magnitude * (_ROUNDINGS * _UNIT.get(rounded, 2.0**-8)), least)
        if not adds:
            return single
        steps = scales.abs()[:, :, None]
        shared = ungrouped(tolerance(in_groups(ours, group), steps, rounded), ours.shape[1])
        return torch.where(magnitude == 0, least, torch.maximum(single, shared))  # equal terms give exactly 0

    return _compare(dense, operands, group, codebook, allowed, outer_group)


def inexact(exact: Tensor, operands: Operands, group: int, codebook: str, outer_group: int = 0) -> str | None:
    """None if the operands' weight is `exact` [N, K], what the code gives without rounding (float64); otherwise what differs."""

    def allowed(ours: Tensor, _: Tensor, shift: Tensor | None) -> Tensor:
        # What is computed as a difference is as exact as the larger of both.
        size = ours.abs() if shift is None else ours.abs() + ungrouped(shift.abs()[:, :, None].expand(-1, -1, group), ours.shape[1])
        return (size * _EXACT).clamp(min=_LEAST[torch.float32])

    return _compare(exact, operands, group, codebook, allowed, outer_group)


def _compare(dense: Tensor, operands: Operands, group: int, codebook: str, allowed: _Allowed, outer_group: int) -> str | None:
    if dense.dim() != 2 or tuple(operands.codes.shape) != tuple(dense.shape):
        return f"shape {list(operands.codes.shape)} instead of {list(dense.shape)}"
    n, k = dense.shape
    if group <= 0:
        return f"a group of {group} values"
    expected = (n, group_count(k, group))
    for name, tensor in (("scales", operands.scales), ("zeros", operands.zeros), ("offsets", operands.offsets)):
        if tensor is not None and tuple(tensor.shape) != expected:
            return f"{name} {list(tensor.shape)} instead of {list(expected)}"
    columns = None if operands.perm is None else operands.perm.long()
    each = groups_each(group, outer_group)
    for part in row_pieces(n, k):
        rows = operands.rows(part)
        scales = scales_of(rows.scales, rows.outer, each)
        shift = None if rows.offsets is None else scales_of(rows.offsets, rows.outer_offset, each)
        ours = dense_of(rows, group, codebook, outer_group)
        theirs = dense[part].to(torch.promote_types(dense.dtype, torch.float32))
        if columns is not None:
            theirs = theirs[:, columns]
        if _rounded_once(ours, theirs, dense.dtype):
            continue
        # `not <=` rather than `>`: NaN on either side counts as different.
        wrong = ~((ours - theirs).abs() <= allowed(ours, scales, shift))
        if bool(wrong.any()):
            row, column = (int(i) for i in wrong.nonzero()[0])
            return (
                f"weight [{part.start + row}, {column}] is {float(theirs[row, column]):.6g}, read as {float(ours[row, column]):.6g}"
            )
    return None


def _rounded_once(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Whether both are the same numbers up to one rounding, as for most code: then nothing has to be allowed.

    Not asked of float16, whose rounding may lose a number altogether, nor where something is infinite.
    """
    if dtype is torch.float16 or not torch.equal(ours.to(dtype).to(theirs.dtype), theirs):
        return False
    return bool(torch.isfinite(theirs.sum()))


def rounded_to(dense: Tensor) -> torch.dtype:
    """The dtype whose rounding the weight carries: also code that ends in float32 may have computed in 16 bits before."""
    if dense.dtype in (torch.float32, torch.float64):
        for narrow in (torch.bfloat16, torch.float16):
            if torch.equal(dense.to(narrow).to(dense.dtype), dense):
                return narrow
    return dense.dtype


def tolerance(grouped: Tensor, step: Tensor | float, dtype: torch.dtype) -> Tensor:
    """By how much a weight computed in `dtype` may be off, per element of grouped [N, G, group]; step: the size of one code.

    Relative to the weights themselves, never to the step alone: divided by a scale that is far too large, any weight is close to 0.
    """
    unit = _UNIT.get(dtype, 2.0**-8)
    magnitude = grouped.abs()
    largest = magnitude.amax(-1, keepdim=True) * (_GROUP_ROUNDINGS * unit)
    shared = torch.minimum(largest, torch.as_tensor(step * _STEP_SHARE, dtype=largest.dtype, device=largest.device))
    return torch.maximum(magnitude * (_ROUNDINGS * unit), shared)


def random_leaves(leaves: Sequence[Tensor], k: int, generator: torch.Generator) -> list[Tensor]:
    """Leaves with the same shapes and dtypes and random contents: every bit pattern in packed ones, both signs in scales.

    Leaves that may be indices keep their own values: int64 and bool as they are, int32 [K] (a group index) shuffled.
    """
    return [_random_like(leaf, k, generator) for leaf in leaves]


def is_fixed(leaf: Tensor) -> bool:
    """Whether `random_leaves` keeps the content of this leaf, so that a proof on random contents says nothing about others."""
    return not leaf.dtype.is_floating_point and (leaf.dtype not in LOW_BIT or leaf.dim() == 0)


def in_range(codes: Tensor, bits: int, signed: bool) -> bool:
    """Whether all codes fit `bits` bits, signed or unsigned (as indices of a code book are)."""
    if bits == 8 or codes.numel() == 0:
        return True
    low, high = (int(item) for item in torch.aminmax(codes))
    return (-(1 << (bits - 1)) <= low and high < 1 << (bits - 1)) if signed else (low >= 0 and high < 1 << bits)


def _random_like(leaf: Tensor, k: int, generator: torch.Generator) -> Tensor:
    if leaf.dtype is torch.int32 and tuple(leaf.shape) == (k,):
        return leaf[torch.randperm(k, generator=generator, dtype=torch.int64, device="cpu")]
    if leaf.dtype in LOW_BIT:
        raw = torch.randint(0, 256, (*leaf.shape, leaf.element_size()), dtype=torch.uint8, generator=generator, device="cpu")
        if leaf.dtype.is_floating_point:
            return (torch.rand(leaf.shape, generator=generator, dtype=torch.float32, device="cpu") + 0.5).to(leaf.dtype)
        return raw.view(leaf.dtype).reshape(leaf.shape).clone() if leaf.dim() else leaf
    if leaf.dtype.is_floating_point:
        sign = torch.randint(0, 2, leaf.shape, generator=generator, dtype=torch.int64, device="cpu") * 2 - 1
        return ((torch.rand(leaf.shape, generator=generator, dtype=torch.float32, device="cpu") + 0.5) * sign * 2.0**-6).to(
            leaf.dtype
        )
    return leaf
