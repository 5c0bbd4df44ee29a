"""Codes of 1 to 8 bits at their own width, at every level of this machine: all kinds of scales, zero points and offsets."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.native_weights import EVERY_DTYPE, EVERY_LEVEL, ROWS, TOLERANCE, activations, require_kernels, tolerance
from support.planes_weights import LEVELS as KINDS
from support.planes_weights import Kind, error, made, packed, parts, product
from torch import Tensor

from qcompile.kernel import inner_bits
from qcompile.meaning import QuantizedWeight
from qcompile.targets.native_planes import planes_bytes

# (N, K, group, outer group): N around the block of 16, K odd and around halves of tiles, groups that divide K and some that do not.
SHAPES = (
    (1, 1, 1, 0), (1, 7, 7, 0), (15, 9, 3, 6), (17, 100, 32, 64), (33, 257, 257, 0), (40, 60, 20, 40), (48, 512, 16, 256),
    (5, 1100, 48, 96), (16, 530, 530, 0), (31, 544, 32, 256), (16, 96, 96, 0),
)  # fmt: skip
BITS = pytest.mark.parametrize("bits", range(1, 9), ids=lambda bits: f"{bits} bit")


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


@BITS
@EVERY_DTYPE
@EVERY_LEVEL
def test_edge_shapes(level: int, dtype: torch.dtype, bits: int) -> None:
    """Every kind with some shapes, every shape with some kinds, another number of rows each time."""
    rows = itertools.cycle(ROWS)
    kinds = itertools.cycle(itertools.product(KINDS, (False, True), (False, True)))
    for n, k, group, outer_group in SHAPES:
        for levels, zeros, offsets in itertools.islice(kinds, 9):  # 28 kinds, so that each shape meets others
            w, m = made(n, k, group, Kind(bits, levels, zeros, offsets, outer_group)), next(rows)
            x = activations(m, k, dtype)
            # Results of float16 stay below 65504.
            x = x if dtype is not torch.float16 else x * 2.0 ** -(bits + 2)
            y = product(w, x, level=level)
            assert y.dtype is dtype and y.shape == (m, n)
            assert error(y, x, w) <= tolerance(dtype, y.numel()), (n, k, group, levels, zeros, offsets, m)


@EVERY_LEVEL
def test_every_number_of_rows(level: int) -> None:
    """One, two, and each way of a panel's rows."""
    w = made(33, 160, 32, Kind(3, "u6 fp16", offsets=True, outer_group=64))
    bytes_ = packed(w)
    for m in range(36):
        x = activations(m, 160, torch.bfloat16)
        assert error(product(w, x, level=level, of=bytes_), x, w) <= TOLERANCE[torch.bfloat16]


@BITS
@EVERY_LEVEL
def test_act_order_and_bias(level: int, bits: int) -> None:
    w, x = made(33, 96, 16, Kind(bits, "bf16", offsets=True)), activations(6, 96, torch.bfloat16)
    perm, bias = torch.randperm(96), torch.randn(33)
    y = product(w, x, perm, bias, level)
    assert error(y, x[:, perm], w, bias) <= TOLERANCE[torch.bfloat16]


@BITS
@EVERY_LEVEL
def test_every_code_and_zero_point(level: int, bits: int) -> None:
    """A row for each zero point, a column for each code; scales and offsets are powers of two, so float32 holds every result."""
    count = 1 << bits
    least = -128 if bits == 8 else 0
    points = torch.arange(least, least + min(count + (bits < 7), 256)).to(torch.int8)
    codes = torch.arange(least, least + count).to(torch.int8).expand(len(points), count).contiguous()
    scales, offsets = torch.full((len(points), 1), 0.25), torch.full((len(points), 1), -8.0)
    for w in (
        QuantizedWeight(codes, scales, points[:, None], bits, count),
        QuantizedWeight(codes, scales, points[:, None], bits, count, offsets=offsets),
    ):
        y = product(w, torch.eye(count), level=level).t()
        assert torch.equal(y.double(), parts(w)[0])


@pytest.mark.parametrize("width", (4, 6, 8))
@pytest.mark.parametrize("dtype", (torch.uint8, torch.int8), ids=("unsigned", "signed"))
@EVERY_LEVEL
def test_every_integer_scale_and_offset(level: int, dtype: torch.dtype, width: int) -> None:
    least = -(1 << (width - 1)) if dtype is torch.int8 else 0
    inner = torch.arange(least, least + (1 << width)).to(dtype)
    scales, offsets = inner.repeat(3, 1), inner.flip(0).repeat(3, 1)
    k = scales.shape[1] * 2
    outer, shift = torch.tensor([[0.5], [2.0], [1.0]]), torch.tensor([[1.0], [-0.25], [4.0]])
    w = QuantizedWeight(
        torch.arange(3 * k).reshape(3, k).remainder(8).to(torch.int8), scales, None, 3, 2, None, "", outer, offsets, shift
    )
    assert torch.equal(product(w, torch.eye(k), level=level).t().double(), parts(w)[0])


@BITS
@EVERY_LEVEL
def test_what_is_zero_stays_zero(level: int, bits: int) -> None:
    """Groups whose weights are all zero, by codes at the zero point, by scales of 0, or by an offset that cancels."""
    x = activations(5, 64, torch.bfloat16)
    w = made(17, 64, 32, Kind(bits, zeros=True, offsets=True))
    assert w.zeros is not None and w.offsets is not None
    top = (1 << bits) - 1 if bits < 8 else 127
    at_zero = w.zeros.clamp(max=top).repeat_interleave(32, 1)
    empty = replace(w, codes=at_zero, zeros=w.zeros.clamp(max=top), offsets=w.offsets * 0)
    no_scale = replace(w, scales=w.scales * 0, offsets=w.offsets * 0)
    cancels = replace(w, codes=w.codes * 0 + top, zeros=w.zeros * 0 + (top - 1), scales=w.scales, offsets=-w.scales)
    for weight in (empty, no_scale, cancels):
        assert not product(weight, x, level=level).any()


@EVERY_LEVEL
def test_nan_and_infinity_stay(level: int) -> None:
    for bits, offsets in itertools.product((2, 3, 6, 8), (False, True)):
        w = made(17, 64, 16, Kind(bits, "u6 fp16", offsets=offsets, outer_group=32))
        x = torch.ones(4, 64)
        x[1, 5], x[2, 9] = float("nan"), float("inf")
        for dtype in TOLERANCE:
            y = product(w, x.to(dtype), level=level)
            assert bool(y[[0, 3]].isfinite().all()) and bool(y[1].isnan().all()) and not bool(y[2].isfinite().any())


@EVERY_LEVEL
def test_x_of_any_layout(level: int) -> None:
    w = made(16, 48, 16, Kind(5, "fp16", offsets=True))
    x = activations(6, 48, torch.bfloat16)
    want = product(w, x, level=level)
    assert torch.equal(product(w, x.t().contiguous().t(), level=level), want)
    assert torch.equal(product(w, x.view(2, 3, 48), level=level), want.view(2, 3, 16))
    assert torch.equal(product(w, x[0], level=level), want[0])
    assert product(w, x[:0], level=level).shape == (0, 16)


def test_sizes_are_the_fake_ones() -> None:
    for (n, k, group, outer_group), levels, zeros, offsets in itertools.product(SHAPES, KINDS, (False, True), (False, True)):
        dtype, inner, outer = KINDS[levels]
        w = made(n, k, group, Kind(3, levels, zeros, offsets, outer_group))
        expected = planes_bytes(
            3,
            n,
            k,
            group,
            (dtype, dtype if offsets else None),
            zeros=zeros,
            outers=(outer, outer if offsets else None) if inner else (None, None),
            outer_group=outer_group if inner else 0,
            inner_bits=inner_bits(w.scales, w.offsets),
        )
        assert packed(w).numel() == expected


# Bits that a weight takes in the checkpoint: kind, group, and what scales, offsets and zero points add.
STORED = {
    "Q4_K": (Kind(4, "u6 fp16", offsets=True, outer_group=256), 32, 4.5),
    "Q5_K": (Kind(5, "u6 fp16", offsets=True, outer_group=256), 32, 5.5),
    "Q2_K": (Kind(2, "u4 fp16", offsets=True, outer_group=256), 16, 2.625),
    "Q3_K": (Kind(3, "i6 f32", outer_group=256), 16, 110 * 8 / 256),
    "Q6_K": (Kind(6, "i8 bf16", outer_group=256), 16, 210 * 8 / 256),
    "Q4_1": (Kind(4, "fp16", offsets=True), 32, 5.0),
    "Q5_0": (Kind(5, "fp16"), 32, 5.5),
    "Q5_1": (Kind(5, "fp16", offsets=True), 32, 6.0),
    "int1": (Kind(1, "bf16"), 128, 1.125),
    "int2": (Kind(2, "bf16"), 128, 2.125),
    "int3": (Kind(3, "bf16"), 128, 3.125),
    "int5": (Kind(5, "bf16"), 128, 5.125),
    "int6": (Kind(6, "bf16"), 128, 6.125),
    "int7": (Kind(7, "bf16"), 128, 7.125),
}


@pytest.mark.parametrize("name", STORED)
def test_bits_for_each_weight(name: str) -> None:
    kind, group, bits = STORED[name]
    w = made(256, 2048, group, kind)
    w = w if w.outer is None or kind.levels != "i6 f32" else replace(w, outer=w.outer.half())
    assert packed(w).numel() * 8 / (256 * 2048) <= bits * 1.02


GOOD = made(32, 64, 16, Kind(3, "u6 fp16", offsets=True, outer_group=32))
PLAIN = made(32, 64, 16, Kind(3, offsets=True))
BAD: dict[str, tuple[QuantizedWeight, dict[str, Any], str]] = {
    "a code of 8": (PLAIN, {"codes": PLAIN.codes + 1}, r"codes: expected 0 to 7 \(with zeros or offsets\), got 8 at"),
    "a signed code": (PLAIN, {"codes": PLAIN.codes - 1}, r"codes: expected 0 to 7 \(with zeros or offsets\), got -1 at"),
    "a code of 4": (PLAIN, {"offsets": None, "codes": PLAIN.codes}, r"codes: expected -4 to 3 \(without zeros and offsets\), got"),
    "a zero point of 9": (PLAIN, {"zeros": torch.full((32, 4), 9, dtype=torch.int8)}, "zeros: expected 0 to 8, got 9 at"),
    "integers alone": (PLAIN, {"scales": GOOD.scales}, "outer: expected a tensor .the scales are integers., got None"),
    "integer offsets alone": (PLAIN, {"offsets": GOOD.offsets}, "outer_offset: expected a tensor .the offsets are integers., got"),
    "an offset's scale alone": (GOOD, {"offsets": None}, "outer_offset: expected None .there are no offsets., got a tensor"),
    "float64": (
        PLAIN,
        {"scales": PLAIN.scales.double()},
        "scales: expected float32 or bfloat16 or float16 or int8 or uint8, got float64",
    ),
    "too few offsets": (PLAIN, {"offsets": torch.ones(32, 1)}, r"offsets: expected shape \[32, 4\], got \[32, 1\]"),
    "outer scales in a row": (GOOD, {"outer": torch.ones(2, 32)}, r"outer: expected shape \[32, 2\], got \[2, 32\]"),
    "integer outer scales": (
        GOOD,
        {"outer": torch.ones(32, 2, dtype=torch.int8)},
        "outer: expected float32 or bfloat16 or float16, got int8",
    ),
    "nine bits": (PLAIN, {"bits": 9}, "bits: expected 1 to 8, got 9"),
    "no group": (PLAIN, {"group": 0}, "group: expected at least 1"),
    "an uneven outer group": (GOOD, {"outer_group": 40}, "outer_group: expected a multiple of group, 16, or K, got 40"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_packed(name: str) -> None:
    start, changes, message = BAD[name]
    with pytest.raises(RuntimeError, match=f"native_planes_pack: {message}"):
        packed(replace(start, **changes))


def test_integers_beyond_their_bits() -> None:
    given = (GOOD.codes, GOOD.scales | 0x3F, None, GOOD.offsets, GOOD.outer, GOOD.outer_offset, 3, 16, 32)
    with pytest.raises(RuntimeError, match=r"scales: expected 0 to 15 .inner_bits is 4., got 63"):
        torch.ops.qcompile.native_planes_pack(*given, 4)
    with pytest.raises(RuntimeError, match="inner_bits: expected 4, 6 or 8, got 5"):
        torch.ops.qcompile.native_planes_pack(*given, 5)
    with pytest.raises(RuntimeError, match=r"inner_bits: expected 0 .*got 4"):
        torch.ops.qcompile.native_planes_pack(PLAIN.codes, PLAIN.scales, None, PLAIN.offsets, None, None, 3, 16, 64, 4)


def changed(bytes_: Tensor) -> None:
    x = torch.zeros(1, 64)
    with pytest.raises(RuntimeError, match="native_planes_linear: packed: expected"):
        torch.ops.qcompile.native_planes_linear(x, bytes_, None, None, 32, 64, 16, 3)


@pytest.mark.parametrize("byte", range(60))
def test_damaged_header(byte: int) -> None:
    bytes_ = packed(GOOD)
    for change in (1, 0x7F, 0x80, 0xFF):
        broken = bytes_.clone()
        broken[byte] ^= change
        changed(broken)


@pytest.mark.parametrize("size", (0, 1, 63, 64, 65, -1))
def test_cut_tensor(size: int) -> None:
    changed(packed(GOOD)[:size])
    changed(torch.cat((packed(GOOD), torch.zeros(1, dtype=torch.uint8))))


def test_what_was_packed_otherwise() -> None:
    codes = GOOD.codes.clamp(max=3)
    changed(torch.ops.qcompile.native_int4_pack(codes, PLAIN.scales, None, 16))
    with pytest.raises(RuntimeError, match=r"expected a tensor of native_int4_pack, but it does not begin with"):
        torch.ops.qcompile.native_int4_linear(torch.zeros(1, 64), packed(GOOD), None, None, 32, 64, 16)
    with pytest.raises(RuntimeError, match=r"expected a weight of n=32, k=64, group=16, bits=4, got one of .*bits=3"):
        torch.ops.qcompile.native_planes_linear(torch.zeros(1, 64), packed(GOOD), None, None, 32, 64, 16, 4)


def test_two_threads_pack_and_multiply_alike() -> None:
    w, x = made(512, 1024, 32, Kind(5, "u6 fp16", offsets=True, outer_group=256)), activations(3, 1024, torch.bfloat16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, y = packed(w), product(w, x)
        torch.set_num_threads(2)
        assert torch.equal(one, packed(w)) and torch.equal(y, product(w, x))
    finally:
        torch.set_num_threads(threads)


def test_float32_numbers_of_16_bits_cost_no_bandwidth() -> None:
    """They are stored in 16 bits: the rest of the tensor is zeros at its end."""
    w = made(32, 256, 32, Kind(3, "fp16", offsets=True))
    assert w.offsets is not None
    narrow, wide = packed(w), packed(replace(w, scales=w.scales.float(), offsets=w.offsets.float()))
    assert torch.equal(narrow[64:], wide[64 : narrow.numel()]) and not bool(wide[narrow.numel() :].any())
