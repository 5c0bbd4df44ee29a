"""Packing for gptq_gemm_rdna3: every code and zero point arrives where RDNA3's format wants it, eagerly and as a graph."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from qcompile.kernel import Site
from qcompile.meaning import Operands, QuantizedWeight
from qcompile.targets import rdna3
from qcompile.targets.registry import find

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # a word, lowest nibble first, holds q0 q2 q4 q6 q1 q3 q5 q7


def nibbles(words: Tensor) -> list[list[list[int]]]:
    return [[[(int(word) & 0xFFFFFFFF) >> (4 * i) & 15 for i in range(8)] for word in row] for row in words]


def weight(
    n: int, k: int, group: int, seed: int, zero_range: tuple[int, int] | None, *, act_order: bool = False
) -> QuantizedWeight:
    made = torch.Generator().manual_seed(seed)
    low = 0 if zero_range else -8
    codes = torch.randint(low, low + 16, (n, k), generator=made, dtype=torch.int8)
    scales = torch.rand((n, k // group), generator=made)
    zeros = None
    if zero_range is not None:
        zeros = torch.randint(zero_range[0], zero_range[1] + 1, (n, k // group), generator=made, dtype=torch.int8)
    return QuantizedWeight(codes, scales, zeros, group=group, perm=torch.randperm(k, generator=made) if act_order else None)


def site(of: QuantizedWeight, zero_range: tuple[int, int] | None, *, bias: bool = False) -> Site:
    return Site(
        n=of.n,
        k=of.k,
        bits=4,
        group=of.group,
        symmetric=of.zeros is None,
        act_order=of.perm is not None,
        dtype=torch.float16,
        zero_range=zero_range or (0, 0),
        has_bias=bias,
    )


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4),
    groups=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    zero_range=st.sampled_from([None, (0, 15), (1, 16), (0, 0), (16, 16), (7, 9)]),
    act_order=st.booleans(),
)
def test_every_code_and_zero_point_is_in_its_place(
    n: int, groups: int, seed: int, zero_range: tuple[int, int] | None, act_order: bool
) -> None:
    one = weight(8 * n, 32 * groups, 32, seed, zero_range, act_order=act_order)
    where = site(one, zero_range)
    qweight, qzeros, scales, *perm = find("rdna3.gptq_gemm").packed(Operands(one.codes, one.scales, one.zeros, one.perm), where)
    assert qweight.dtype == qzeros.dtype == torch.int32 and all(tensor.dtype == torch.int32 for tensor in perm)
    assert scales.dtype == torch.float16
    assert all(tensor.is_contiguous() for tensor in (qweight, qzeros, scales, *perm))
    words = nibbles(qweight)
    for row, line in enumerate(words):
        for column, word in enumerate(line):
            for place, value in enumerate(word):
                assert value == int(one.codes[column, 8 * row + ORDER[place]]) + (8 if one.zeros is None else 0)
    stored = torch.tensor(nibbles(qzeros)).reshape(groups, 8 * n)
    effective = stored + (0 if rdna3.stores_v2(where) else 1)
    expected = torch.full((groups, 8 * n), 8) if one.zeros is None else one.zeros.t().long()
    assert torch.equal(effective, expected)
    assert torch.equal(scales, one.scales.t().half())
    assert not perm if one.perm is None else torch.equal(perm[0].long(), one.perm)


def test_awq_zero_point_0_and_gptq_zero_point_16_survive() -> None:
    for zero_range, v2 in (((0, 15), True), ((1, 16), False), ((16, 16), False), ((0, 0), True)):
        one = weight(8, 32, 32, 0, zero_range)
        assert rdna3.stores_v2(site(one, zero_range)) is v2


@pytest.mark.parametrize("zero_range", [None, (0, 15)], ids=["symmetric", "asymmetric"])
def test_packing_is_straight_line_code(zero_range: tuple[int, int] | None) -> None:
    """Traced once with proxies and run on other tensors, it gives what the eager code gives."""
    one = weight(16, 64, 32, 1, zero_range, act_order=True)
    where = site(one, zero_range, bias=True)

    def pack(codes: Tensor, scales: Tensor, zeros: Tensor, perm: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return find("rdna3.gptq_gemm").packed(Operands(codes, scales, None if where.symmetric else zeros, perm, bias), where)

    traced: Any = fx.symbolic_trace(pack)
    assert one.perm is not None
    tensors = (one.codes, one.scales, torch.empty(0) if one.zeros is None else one.zeros, one.perm, torch.randn(16))
    for ours, theirs in zip(traced(*tensors), pack(*tensors), strict=True):
        assert torch.equal(ours, theirs)
