"""Random problems for the native products: shapes, groups, dtypes, zero points, order of K, bias and level."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from support.native_weights import DTYPES, LEVELS, Weight, activations, weight
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Problem:
    """x [M, K], of which the weight reads x[:, perm]."""

    w: Weight
    x: Tensor
    perm: Tensor | None
    bias: Tensor | None
    level: int

    @property
    def ordered(self) -> Tensor:
        """x in the order of the weight."""
        return self.x if self.perm is None else self.x[:, self.perm]


@st.composite
def problems(draw: st.DrawFn, widths: tuple[int, ...] = (4, 8)) -> Problem:
    bits = draw(st.sampled_from(widths), "bits")
    n, k, m = draw(st.integers(1, 70), "n"), draw(st.integers(1, 300), "k"), draw(st.integers(0, 30), "m")
    seed = draw(st.integers(0, 99), "seed")
    group, scales = draw(st.integers(1, k), "group"), draw(st.sampled_from(DTYPES), "scales")
    w = weight(n, k, group, bits=bits, zeros=draw(st.booleans(), "zeros"), seed=seed, scales=scales)
    generator = torch.Generator().manual_seed(seed)
    perm = torch.randperm(k, generator=generator) if draw(st.booleans(), "perm") else None
    bias = torch.randn(n, generator=generator) if draw(st.booleans(), "bias") else None
    x = activations(m, k, draw(st.sampled_from(DTYPES), "dtype"), seed=seed)
    return Problem(w, x, perm, bias, draw(st.integers(0, len(LEVELS) - 1), "level"))
