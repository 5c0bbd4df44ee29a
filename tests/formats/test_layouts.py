"""Every storage layout is unpacked exactly: all codes and zero points, square and awkward shapes, against lists of integers."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import slow
from torch import Tensor, fx
from torch.fx.proxy import GraphAppendingTracer

from qcompile.codebooks import CODE_BOOKS
from qcompile.formats.layouts import LAYOUTS, Packing, Stored
from qcompile.meaning import Operands, QuantizedWeight
from qcompile.operators import dequantize_packed


@dataclass
class Drawn:
    """Random unsigned codes, true zero points and scales of one weight, as Python lists."""

    n: int
    k: int
    group: int
    bits: int
    codes: slow.Matrix
    zeros: slow.Matrix
    scales: list[list[float]]
    g_idx: list[int] | None

    @property
    def columns(self) -> list[int]:
        return self.g_idx or [column // self.group for column in range(self.k)]

    def expected(self, symmetric: bool) -> Tensor:
        middle = 1 << (self.bits - 1)
        zeros = [[middle] * len(row) for row in self.zeros] if symmetric else self.zeros
        return slow.weight(self.codes, zeros, self.scales, self.columns)


@st.composite
def drawn(
    draw: st.DrawFn,
    bits: int,
    n_of: int = 1,
    k_of: int = 1,
    least_zero: int = 0,
    most_zero: int | None = None,
    ordered: bool = True,
) -> Drawn:
    """n, k multiples of n_of, k_of; zero points least_zero .. most_zero; scales are powers of two times small integers."""
    group = k_of * draw(st.integers(1, 6))
    groups = draw(st.integers(1, 3))
    k = group * groups
    n = draw(st.sampled_from([k] if k % n_of == 0 else [n_of]) | st.integers(1, 4).map(lambda count: count * n_of))
    top = (1 << bits) - 1
    most = top if most_zero is None else most_zero
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))

    def table(low: int, high: int, rows: int, columns: int) -> slow.Matrix:
        return torch.randint(low, high + 1, (rows, columns), generator=generator).tolist()

    g_idx: list[int] | None = None
    if not ordered:
        g_idx = (torch.randperm(k, generator=generator) // group).tolist()
    scales = [[value / 64 for value in row] for row in table(1, 255, n, groups)]
    return Drawn(n, k, group, bits, table(0, top, n, k), table(least_zero, most, n, groups), scales, g_idx)


def agree(layout: str, case: Drawn, stored: Stored, expected: Tensor) -> None:
    """Unpacked operands, the same traced with fx, and the operator give `expected`; the operands are a valid weight."""
    packing = Packing(case.bits, case.group, case.n, case.k)
    found = LAYOUTS[layout].unpack(stored, packing)
    checked = weight_of(found, case)
    checked.check()
    assert torch.equal(checked.dequantize(torch.float64), expected)
    traced = trace(layout, stored, packing)
    for left, right in zip(found, traced, strict=True):
        assert (left is None) == (right is None)
        assert left is None or torch.equal(left, right)
    shape = LAYOUTS[layout].unpack(stored._replace(packed=stored.packed.to("meta")), packing).codes
    assert shape.is_meta and (shape.shape, shape.dtype) == (found.codes.shape, found.codes.dtype)
    result = dequantize_packed(*stored, layout, case.bits, case.group, case.n, case.k, torch.float32)
    assert torch.equal(result.double(), expected)


def weight_of(found: Operands, case: Drawn) -> QuantizedWeight:
    codes, scales = found.codes.contiguous(), found.scales.contiguous()
    return QuantizedWeight(codes, scales, found.zeros, case.bits, case.group, found.perm)


def trace(layout: str, stored: Stored, packing: Packing) -> Any:
    """The same unpacking run from a traced graph."""
    names = [name for name, value in zip(stored._fields, stored, strict=True) if value is not None]
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)
    proxies: dict[str, Any] = {name: fx.Proxy(graph.placeholder(name), tracer) for name in names}
    found: Any = LAYOUTS[layout].unpack(Stored(**proxies), packing)
    graph.output(tuple(None if part is None else part.node for part in found))
    module = fx.GraphModule(torch.nn.Module(), graph)
    return module(*[getattr(stored, name) for name in names])


def scales_of(case: Drawn) -> Tensor:
    return torch.tensor(case.scales, dtype=torch.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_compressed_tensors_pack(bits: int, data: st.DataObject) -> None:
    case = data.draw(drawn(bits))
    packed = slow.int32([slow.dense_words(row, bits) for row in case.codes])
    zeros = slow.int32(slow.transposed([slow.dense_words(row, bits) for row in slow.transposed(case.zeros)]))
    middle = 1 << (bits - 1)
    plain = torch.tensor([[zero - middle for zero in row] for row in case.zeros], dtype=torch.int8)
    scales = scales_of(case)
    agree("ct_pack", case, Stored(packed, scales), case.expected(symmetric=True))
    agree("ct_pack", case, Stored(packed, scales, zeros), case.expected(symmetric=False))
    agree("ct_pack_plain_zeros", case, Stored(packed, scales, plain), case.expected(symmetric=False))


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_compressed_tensors_pack_with_g_idx(data: st.DataObject) -> None:
    case = data.draw(drawn(4, ordered=False))
    packed = slow.int32([slow.dense_words(row, 4) for row in case.codes])
    order = torch.tensor(case.g_idx, dtype=torch.int32)
    agree("ct_pack", case, Stored(packed, scales_of(case), None, order), case.expected(symmetric=True))


@pytest.mark.parametrize("bits", [4, 8])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_compressed_tensors_int8(bits: int, data: st.DataObject) -> None:
    case = data.draw(drawn(bits))
    middle = 1 << (bits - 1)
    codes = torch.tensor([[code - middle for code in row] for row in case.codes], dtype=torch.int8)
    zeros = torch.tensor([[zero - middle for zero in row] for row in case.zeros], dtype=torch.int8)
    agree("ct_int8", case, Stored(codes, scales_of(case)), case.expected(symmetric=True))
    agree("ct_int8", case, Stored(codes, scales_of(case), zeros), case.expected(symmetric=False))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ordered", [True, False])
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_gptq_both_versions(bits: int, ordered: bool, data: st.DataObject) -> None:
    per_word, top = 32 // bits, (1 << bits) - 1
    # Version 1 stores the zero point minus one: it knows 1 .. 2^bits, of which 256 does not fit in a byte.
    case = data.draw(drawn(bits, per_word, per_word, 1, top if bits == 8 else top + 1, ordered))
    packed = slow.int32(slow.transposed([slow.dense_words(row, bits) for row in case.codes]))
    order = None if ordered else torch.tensor(case.g_idx, dtype=torch.int32)
    scales = scales_of(case).t().contiguous()
    agree("gptq", case, Stored(packed, scales, None, order), case.expected(symmetric=True))
    first = slow.int32([slow.dense_words([zero - 1 for zero in row], bits) for row in slow.transposed(case.zeros)])
    agree("gptq", case, Stored(packed, scales, first, order), case.expected(symmetric=False))
    case.zeros = [[zero & top for zero in row] for row in case.zeros]
    agree("gptq_wrapped", case, Stored(packed, scales, first, order), case.expected(symmetric=False))
    second = slow.int32([slow.dense_words(row, bits) for row in slow.transposed(case.zeros)])
    agree("gptq_v2", case, Stored(packed, scales, second, order), case.expected(symmetric=False))


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_awq_keeps_a_true_zero_point_of_zero(data: st.DataObject) -> None:
    case = data.draw(drawn(4, n_of=8))
    case.zeros[0][0] = 0
    packed = slow.int32([slow.awq_words(row) for row in slow.transposed(case.codes)])
    zeros = slow.int32([slow.awq_words(row) for row in slow.transposed(case.zeros)])
    scales = scales_of(case).t().contiguous()
    agree("awq", case, Stored(packed, scales, zeros), case.expected(symmetric=False))
    agree("awq", case, Stored(packed, scales), case.expected(symmetric=True))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_code_with_every_zero_point(bits: int) -> None:
    """One row per zero point 1 .. 2^bits, one column per code."""
    top = 1 << bits
    per_word = 32 // bits
    k = max(top, per_word)
    points = list(range(1, top if bits == 8 else top + 1))
    points += [1] * (-len(points) % per_word)
    codes = [[column % top for column in range(k)] for _ in points]
    case = Drawn(len(points), k, k, bits, codes, [[point] for point in points], [[0.5] for _ in points], None)
    packed = slow.int32(slow.transposed([slow.dense_words(row, bits) for row in codes]))
    zeros = slow.int32([slow.dense_words([point - 1 for point in points], bits)])
    agree("gptq", case, Stored(packed, scales_of(case).t(), zeros), case.expected(symmetric=False))


def test_mxfp4_scales_are_powers_of_two() -> None:
    """Every exponent with every code; float32 holds all but the largest, which overflow, as 6 times 2^127 does."""
    codes = torch.arange(16, dtype=torch.uint8).repeat(255, 2)
    packed, exponents = codes[:, 0::2] | (codes[:, 1::2] << 4), torch.arange(255, dtype=torch.uint8)[:, None]
    table = torch.tensor(CODE_BOOKS["e2m1"], dtype=torch.float64)
    expected = (table[codes.long()] * 2.0 ** (exponents.double() - 127)).float()
    found = dequantize_packed(packed, exponents, None, None, "mxfp4", 4, 32, 255, 32, torch.float32)
    assert torch.equal(found, expected)


def test_nvfp4_divides_by_the_global_scale() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(3, 2)
    packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
    scales = torch.tensor([[1.0, 2.0], [0.5, 448.0], [3.5, 0.125]]).to(torch.float8_e4m3fn)
    divisor = torch.tensor([24.0])
    table = torch.tensor(CODE_BOOKS["e2m1"], dtype=torch.float32)
    expected = table[codes.long()] * (scales.float() / divisor).repeat_interleave(16, dim=1)
    found = dequantize_packed(packed, scales, divisor, None, "nvfp4", 4, 16, 3, 32, torch.float32)
    assert torch.equal(found, expected)
    assert [abs(float(value)) for value in table] == [*slow.E2M1, *slow.E2M1]
    assert (table[8:] <= 0).all()
