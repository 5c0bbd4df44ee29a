"""Which zero-point convention a GPTQ model's files follow: decided by the symmetric layers, then by the codes, then by the label.

Version 1 of the format stores the zero point minus one, version 2 the zero point itself, and labels are wrong often enough. A
symmetric layer shows the truth, because its zero point is 2^(bits-1): stored 7 everywhere (4 bits) is version 1, stored 8
everywhere version 2. An asymmetric one shows it too: weights are about as often positive as negative, so over many groups the mean
of code minus zero point is near 0, and the mean of code minus stored zero point near 0 in version 2 and near 1 in version 1. That
holds only where the zero points belong to the codes, which the slope of the groups' mean code over their stored zero point tells:
near 1 for a quantized weight, near 0 for codes that have nothing to do with their zero points.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

# How many codes of a layer are looked at, in whole output channels.
_SAMPLE = 1 << 18
# The pooled mean must be this much nearer to one of 0 and 1 than to the other, and lie between the two with this much room.
_CLEAR, _OUTSIDE = 0.2, 0.5
# The slope from which zero points count as belonging to their codes, and how many standard errors the mean must lie from 1/2.
_BELONGS, _ERRORS = 0.5, 3.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one layer shows.

    bits; stored: least and greatest stored zero point, None if there are none; groups: how many groups were looked at; total: sum
    over them of the mean of code minus stored zero point, squares: of its square; varied: sum of squares of the stored zero points
    about their mean, together: of their products with the mean codes.
    """

    bits: int
    stored: tuple[int, int] | None
    groups: int = 0
    total: float = 0.0
    squares: float = 0.0
    varied: float = 0.0
    together: float = 0.0

    @property
    def version(self) -> int | None:
        """The version that a symmetric layer shows, None for another one."""
        middle = 1 << (self.bits - 1)
        return {(middle - 1, middle - 1): 1, (middle, middle): 2}.get(self.stored) if self.stored is not None else None


def channels(n: int, k: int) -> Tensor:
    """The output channels of a layer [n, k] that are looked at."""
    count = max(1, min(n, _SAMPLE // max(k, 1)))
    return torch.arange(count, device="cpu", dtype=torch.int64) * n // count


def evidence(bits: int, stored: tuple[int, int] | None, codes: Tensor, zeros: Tensor, columns: Tensor) -> Evidence:
    """What some channels show: unsigned codes [C, K], stored zero points [C, G], the group of each column int64 [K].

    Groups whose stored zero point is 2^bits - 1 take no part: in version 1 that is a zero point of 2^bits, or 0 that wrapped.
    """
    sums = torch.zeros(zeros.shape, dtype=torch.float64, device="cpu")
    sums.index_add_(1, columns, codes.to(torch.float64))
    counts = torch.bincount(columns, minlength=zeros.shape[1]).clamp(min=1)
    mean, used = sums / counts, zeros != (1 << bits) - 1
    if not bool(used.any()):
        return Evidence(bits, stored)
    mean, points = mean[used], zeros[used].to(torch.float64)
    difference, spread = mean - points, points - points.mean()
    return Evidence(
        bits,
        stored,
        int(used.sum()),
        float(difference.sum()),
        float(difference.square().sum()),
        float(spread.square().sum()),
        float((spread * (mean - mean.mean())).sum()),
    )


def decide(layers: list[Evidence], label: int) -> tuple[int, str]:
    """The version that holds for all layers, and the sentence that says why ("" if symmetric layers confirm the label)."""
    votes = Counter(layer.version for layer in layers if layer.version is not None)
    if len(votes) == 1:
        (shown,) = votes
        says = f"zero points read as version {shown}, which the symmetric layers show; the label says version {label}"
        return shown, says if shown != label else ""
    asymmetric = [layer for layer in layers if layer.version is None and layer.groups]
    shown_by_codes, how = _by_codes(asymmetric)
    if shown_by_codes is None:
        return label, f"zero points read as version {label}, as the label says; no symmetric layer confirms it, and {how}"
    said = "as the label says" if shown_by_codes == label else f"the label says version {label}"
    return shown_by_codes, f"zero points read as version {shown_by_codes}, which the codes show ({how}); {said}"


def _by_codes(layers: list[Evidence]) -> tuple[int | None, str]:
    """The version that the codes show, None if they show none, and how clearly."""
    groups = sum(layer.groups for layer in layers)
    if groups == 0:
        return None, "there are no codes to tell"
    mean = sum(layer.total for layer in layers) / groups
    varied = sum(layer.varied for layer in layers)
    slope = sum(layer.together for layer in layers) / varied if varied > 0 else 0.0
    variance = max(sum(layer.squares for layer in layers) / groups - mean * mean, 0.0)
    # Layers differ from one another by more than their groups tell: at 8 bits a mean weight of 1 % of the range is two steps.
    between = sum(layer.groups * (layer.total / layer.groups - mean) ** 2 for layer in layers) / groups
    error = max(variance / groups, between / len(layers)) ** 0.5
    margin = abs(mean - 0.5)
    seen = f"mean of code minus stored zero point {mean:.2f} over {groups} groups of {len(layers)} layers"
    if slope < _BELONGS:
        return None, f"the codes do not tell, because they do not follow their zero points (slope {slope:.2f}; {seen})"
    if margin < max(_CLEAR, _ERRORS * error) or margin > 0.5 + _OUTSIDE:
        return None, f"the codes do not tell ({seen}; version 1 has 1, version 2 has 0)"
    version = 1 if mean > 0.5 else 2
    return version, f"{seen}; version 1 has 1, version 2 has 0; margin {margin:.2f} of 0.5"
