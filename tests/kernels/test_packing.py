"""Packing keeps every code, scale and zero point, is the same for every level, and its header guards it."""

import pytest
import torch
from support.native_weights import EVERY_LEVEL, LEVELS, require_kernels, weight
from torch import Tensor

from qcompile.targets.native_ops import packed_bytes

SHAPES = ((1, 1, 1), (15, 7, 7), (16, 64, 16), (17, 96, 32), (40, 60, 20), (33, 257, 257), (48, 100, 32))


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize("zeros", (False, True), ids=("symmetric", "zeros"))
@pytest.mark.parametrize(("n", "k", "group"), SHAPES)
@EVERY_LEVEL
def test_round_trip(level: int, n: int, k: int, group: int, zeros: bool, bits: int) -> None:
    """The product with the identity reads every weight back: exactly, as the scales are powers of two."""
    w = weight(n, k, group, bits=bits, zeros=zeros, seed=k)
    scales = 2.0 ** torch.randint(-3, 4, w.scales.shape, generator=torch.Generator().manual_seed(5)).float()
    w = type(w)(w.codes, scales, w.zeros, group, bits)
    op = torch.ops.qcompile.native_int4_linear if bits == 4 else torch.ops.qcompile.native_int8_a16_linear
    y = op(torch.eye(k), w.pack(), None, None, n, k, group, level=level)
    assert torch.equal(y.double().T, w.dense())


@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize("zeros", (False, True), ids=("symmetric", "zeros"))
@pytest.mark.parametrize("scales", (torch.bfloat16, torch.float16, torch.float32), ids=("bf16", "fp16", "f32"))
def test_size_is_the_fake_one(scales: torch.dtype, zeros: bool, bits: int) -> None:
    for n, k, group in SHAPES:
        w = weight(n, k, group, bits=bits, zeros=zeros, scales=scales)
        assert w.pack().numel() == packed_bytes(bits, n, k, group, scales.itemsize, zeros=zeros)


def test_float32_scales_of_bfloat16_values_cost_no_bandwidth() -> None:
    """They are stored in 16 bits: the rest of the tensor is zeros at its end."""
    w = weight(32, 256, 32, scales=torch.bfloat16)
    wide = type(w)(w.codes, w.scales.float(), None, 32, 4)
    narrow, padded = w.pack(), wide.pack()
    assert torch.equal(narrow[64:], padded[64 : narrow.numel()])
    assert not bool(padded[narrow.numel() :].any())


def test_group_beyond_k_means_k() -> None:
    w = weight(16, 48, 48)
    assert torch.equal(w.pack(), torch.ops.qcompile.native_int4_pack(w.codes, w.scales, None, 1 << 20))


def test_packing_in_several_threads_is_the_same() -> None:
    w = weight(512, 1024, 128, zeros=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = w.pack()
        torch.set_num_threads(2)
        assert torch.equal(one, w.pack())
    finally:
        torch.set_num_threads(threads)


def linear(packed: Tensor, bits: int = 4) -> Tensor:
    op = torch.ops.qcompile.native_int4_linear if bits == 4 else torch.ops.qcompile.native_int8_a16_linear
    y: Tensor = op(torch.zeros(1, 64), packed, None, None, 16, 64, 32)
    return y


@pytest.mark.parametrize("byte", range(52))
def test_damaged_header(byte: int) -> None:
    """Whatever byte of the header's fields changes, the weight is refused."""
    packed = weight(16, 64, 32, zeros=True).pack()
    assert linear(packed).shape == (1, 16)
    for change in (1, 0x7F, 0x80, 0xFF):
        broken = packed.clone()
        broken[byte] ^= change
        with pytest.raises(RuntimeError, match="native_int4_linear: packed: expected"):
            linear(broken)


@pytest.mark.parametrize("size", (0, 1, 63, 64, 65, -1))
def test_cut_tensor(size: int) -> None:
    packed = weight(16, 64, 32).pack()
    with pytest.raises(RuntimeError, match="packed: expected a tensor of native_int4_pack, but it"):
        linear(packed[:size])
    with pytest.raises(RuntimeError, match="its size is not the one its header says"):
        linear(torch.cat((packed, packed[:1])))


def test_other_bits_are_named() -> None:
    with pytest.raises(RuntimeError, match="but it holds 8-bit weights"):
        linear(weight(16, 64, 32, bits=8).pack())
    with pytest.raises(RuntimeError, match="but it holds 4-bit weights"):
        linear(weight(16, 64, 32).pack(), bits=8)


def test_copy_at_an_odd_address() -> None:
    """Packed weights from a file need no alignment."""
    w = weight(33, 200, 40, zeros=True)
    packed = w.pack()
    for shift in (1, 3, 32):
        moved = torch.empty(packed.numel() + shift, dtype=torch.uint8)[shift:].copy_(packed)
        x = torch.randn(2, 200)
        for level in range(len(LEVELS)):
            wanted = torch.ops.qcompile.native_int4_linear(x, packed, None, None, 33, 200, 40, level=level)
            assert torch.equal(torch.ops.qcompile.native_int4_linear(x, moved, None, None, 33, 200, 40, level=level), wanted)
