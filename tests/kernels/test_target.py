"""The rows of target `native`: what they take and refuse, and that pack_linear computes what the meaning says."""

from dataclasses import replace

import pytest
import torch
from support.native_weights import activations, require_kernels

from qcompile.activations import ActivationQuant
from qcompile.api import pack_linear
from qcompile.errors import KernelRefusedError
from qcompile.hardware import platform
from qcompile.kernel import Reasons, Site
from qcompile.meaning import QuantizedWeight, sqnr_db
from qcompile.targets.native import a8_group
from qcompile.targets.registry import find, kernels
from qcompile.timing.candidates import candidates
from qcompile.timing.times import Times

SITE = Site(n=32, k=256, bits=4, group=128)
TOKEN = ActivationQuant("token")
TWO_LEVELS = replace(
    SITE,
    group=32,
    scale_dtype=torch.uint8,
    outer=True,
    outer_group=128,
    offset=True,
    offset_dtype=torch.uint8,
    outer_offset=True,
    inner_bits=6,
)


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


def refusals(kernel: str, site: Site) -> Reasons:
    return find(f"native.{kernel}").refuses(site)


def test_they_run_here() -> None:
    for name in ("int4", "planes", "int8", "int8_a16", "int4_a8"):
        assert find(f"native.{name}").missing(platform()) == ()


@pytest.mark.parametrize(
    ("kernel", "site"),
    [
        ("int4", SITE),
        ("int4", replace(SITE, bits=3, symmetric=False, zero_range=(0, 16), act_order=True, has_bias=True)),
        ("int8_a16", replace(SITE, bits=8)),
        ("int8_a16", replace(SITE, bits=5, symmetric=False, zero_range=(0, 32))),
        ("int8", replace(SITE, bits=8, group=256, activation=TOKEN)),
        ("int8", replace(SITE, bits=8, activation=ActivationQuant("token_asymmetric"))),
        ("int8", replace(SITE, bits=8, activation=ActivationQuant("tensor"))),
        ("int8", replace(SITE, bits=8, allow_a8=True)),
        ("int4_a8", replace(SITE, activation=TOKEN)),
        ("int4_a8", replace(SITE, allow_a8=True)),
        ("planes", replace(SITE, bits=1, act_order=True, has_bias=True)),
        ("planes", replace(SITE, bits=6, symmetric=False, zero_range=(0, 64))),
        ("planes", replace(SITE, bits=8, symmetric=False, zero_range=(-128, 127), offset=True, offset_dtype=torch.bfloat16)),
        ("planes", TWO_LEVELS),
    ],
)
def test_takes(kernel: str, site: Site) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert refusals(kernel, replace(site, dtype=dtype)) == ()


@pytest.mark.parametrize(
    ("kernel", "site", "reason"),
    [
        ("int4", replace(SITE, bits=8), "takes weights of up to 4 bits, got 8"),
        (
            "int4",
            replace(SITE, activation=TOKEN),
            "rounds activations to floats of 4 or 8 bits or not at all, this linear wants token/127.5/-128",
        ),
        (
            "planes",
            replace(TWO_LEVELS, activation=TOKEN),
            "rounds activations to floats of 4 or 8 bits or not at all, this linear wants token/127.5/-128",
        ),
        ("planes", replace(SITE, codebook="e2m1"), "takes integer codes, these index the code book 'e2m1'"),
        ("planes", replace(SITE, bits=3, symmetric=False, zero_range=(0, 9)), "takes zero points of 0 to 8, got 0 to 9"),
        ("planes", replace(TWO_LEVELS, outer=False), "takes bfloat16, float16 or float32 scales, got torch.uint8"),
        ("planes", replace(TWO_LEVELS, outer_offset=False), "takes bfloat16, float16 or float32 offsets, got torch.uint8"),
        ("planes", SITE, "leaves 4 and 8 bits without offsets and outer scales to native.int4 and native.int8_a16"),
        ("int4", replace(SITE, offset=True), "takes integer zero points or none, each group of these weights has a real offset"),
        (
            "int8",
            replace(SITE, bits=8, outer=True, allow_a8=True),
            "takes scales of one level, these weights have an outer scale as well",
        ),
        (
            "int8_a16",
            replace(SITE, offset=True),
            "takes integer zero points or none, each group of these weights has a real offset",
        ),
        (
            "int4_a8",
            replace(SITE, outer=True, allow_a8=True),
            "takes scales of one level, these weights have an outer scale as well",
        ),
        ("int4", replace(SITE, codebook="e2m1"), "takes integer codes, these index the code book 'e2m1'"),
        ("int4", replace(SITE, device="cuda"), "runs on the CPU, this linear is on cuda"),
        ("int4", replace(SITE, zero_range=(-1, 3)), "takes zero points of 0 to 16, got -1 to 3"),
        ("int4", replace(SITE, dtype=torch.float64), "takes bfloat16, float16 or float32 activations, got torch.float64"),
        ("int8", replace(SITE, bits=8, k=1 << 17, group=1 << 17, activation=TOKEN), "takes groups of up to 65536, got 131072"),
        (
            "int8",
            replace(SITE, bits=8),
            "quantizes activations to int8, which the checkpoint does not ask for (the option allow_a8 permits it)",
        ),
        (
            "int4_a8",
            SITE,
            "quantizes activations to int8, which the checkpoint does not ask for (the option allow_a8 permits it)",
        ),
        (
            "int4_a8",
            replace(SITE, activation=ActivationQuant("tensor")),
            "rounds activations per token or per group, this linear wants tensor",
        ),
        (
            "int4_a8",
            replace(SITE, k=300, group=300, allow_a8=True),
            "rounds activations in groups of 16 to 128, which must divide the weight's group of 300",
        ),
    ],
)
def test_refuses_with_one_reason(kernel: str, site: Site, reason: str) -> None:
    assert refusals(kernel, site) == (reason,)


def test_groups_of_rounded_x_divide_the_weights() -> None:
    assert [a8_group(replace(SITE, k=4096, group=g)) for g in (32, 128, 256, 4096, 192)] == [32, 128, 128, 128, 64]
    assert a8_group(replace(SITE, k=4096, group=4096, activation=TOKEN)) == 4096


def quantized(bits: int, group: int, *, zeros: bool, perm: bool) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(bits)
    low = 0 if zeros and bits < 8 else -(1 << (bits - 1))
    codes = torch.randint(low, low + (1 << bits), (48, 256), generator=generator).to(torch.int8)
    points = torch.randint(low, low + (1 << bits), (48, 256 // group), generator=generator).to(torch.int8)
    scales = torch.rand(48, 256 // group, generator=generator) + 0.1
    order = torch.randperm(256, generator=generator) if perm else None
    return QuantizedWeight(codes, scales, points if zeros else None, bits, group, order)


@pytest.mark.parametrize("perm", (False, True), ids=("in order", "act-order"))
@pytest.mark.parametrize("zeros", (False, True), ids=("symmetric", "zeros"))
@pytest.mark.parametrize("bits", range(2, 9))
def test_pack_linear(bits: int, zeros: bool, perm: bool) -> None:
    weight = quantized(bits, 64, zeros=zeros, perm=perm)
    bias = torch.randn(48)
    x = activations(6, 256, torch.float32).reshape(2, 3, 256)
    wanted = torch.nn.functional.linear(x, weight.dequantize(), bias)
    for name in ("int4", "int8_a16") if bits <= 4 else ("int8_a16",):
        assert sqnr_db(wanted, pack_linear(weight, f"native.{name}", torch.float32, bias)(x)) > 110
    rounded = torch.nn.functional.linear(TOKEN.apply(x), weight.dequantize(), bias)
    for name in ("int8", "int4_a8") if bits <= 4 else ("int8",):
        call = pack_linear(weight, f"native.{name}", torch.float32, bias, activation=TOKEN)
        assert sqnr_db(rounded, call(x)) > 110
        call = pack_linear(weight, f"native.{name}", torch.float32, bias, activation=ActivationQuant(), allow_a8=True)
        plain = torch.randn(3, 256, generator=torch.Generator().manual_seed(9))
        assert sqnr_db(torch.nn.functional.linear(plain, weight.dequantize(), bias), call(plain)) > 40


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("codebook", ("e4m3", "e5m2", "e2m1", ""))
def test_outer_scales_of_every_dtype(codebook: str, dtype: torch.dtype) -> None:
    bits = {"e2m1": 4, "": 3}.get(codebook, 8)
    codes = quantized(bits, 64, zeros=False, perm=False).codes.remainder(8 if bits == 4 else 100 if bits == 8 else 4)
    steps = quantized(bits, 64, zeros=False, perm=False).scales
    outer = torch.rand(48, 1, generator=torch.Generator().manual_seed(7)).add(0.5).to(dtype)
    weight = QuantizedWeight(codes, steps, bits=bits, group=64, codebook=codebook, outer=outer)
    x = activations(3, 256, torch.float32)
    wanted = torch.nn.functional.linear(x, weight.dequantize())
    name = {"e2m1": "book4", "": "planes"}.get(codebook, "fp8")
    for kernel in (f"native.{name}", None):
        assert sqnr_db(wanted, pack_linear(weight, kernel, torch.float32)(x)) > 110


def test_pack_linear_static() -> None:
    weight = quantized(8, 256, zeros=False, perm=True)
    x = activations(5, 256, torch.bfloat16)
    for zero in (None, torch.tensor([4], dtype=torch.int8)):
        rounding, scale = ActivationQuant("tensor"), torch.tensor([0.13])
        call = pack_linear(weight, "native.int8", activation=rounding, act_scale=scale, act_zero=zero)
        wanted = torch.nn.functional.linear(rounding.apply(x.float(), scale, zero), weight.dequantize())
        assert sqnr_db(wanted, call(x)) > 50


def test_pack_linear_says_why_not() -> None:
    with pytest.raises(KernelRefusedError, match="takes weights of up to 4 bits, got 8"):
        pack_linear(quantized(8, 64, zeros=False, perm=False), "native.int4")


@pytest.mark.parametrize("group", (64, 256))
def test_with_and_without_rounding_one_packed_weight_is_read(group: int) -> None:
    """Where rounding is allowed, both 4-bit kernels pack alike, although one cuts large groups; so do both 8-bit ones."""
    from qcompile.meaning import Operands  # noqa: PLC0415
    from qcompile.targets.registry import kernels  # noqa: PLC0415

    weight = quantized(4, group, zeros=True, perm=False)
    operands = Operands(weight.codes, weight.scales, weight.zeros)
    site = replace(SITE, n=48, k=256, group=group, symmetric=False, dtype=torch.float32, allow_a8=True)
    plain, rounding = kernels()["native.int4"], kernels()["native.int4_a8"]
    assert plain.form is not None and rounding.form is not None and plain.form(site) == rounding.form(site)
    packed = plain.packed(operands, site)
    assert all(torch.equal(left, right) for left, right in zip(packed, rounding.packed(operands, site), strict=True))
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(2))
    want = torch.nn.functional.linear(x, weight.dequantize())
    assert sqnr_db(want, plain.run(x, packed, site)) > 110
    assert sqnr_db(want, rounding.run(x, packed, site)) > 40
    alone = replace(site, allow_a8=False)
    assert plain.form(alone) == f"int4 in groups of {group}"


@pytest.mark.parametrize("bits", (1, 2, 3, 5, 6, 7))
@pytest.mark.parametrize("zeros", (False, True), ids=("symmetric", "zero points"))
def test_codes_of_other_widths_run_at_their_own(bits: int, zeros: bool) -> None:
    """By its bytes, the row that keeps them so is preferred."""
    where = platform()
    site = replace(SITE, n=4096, k=4096, bits=bits, symmetric=not zeros, zero_range=(0, 1))
    able = {row.name: row for row in kernels().values() if row.target == "native" and not row.reasons(site, where)}
    assert len(able) > 1
    found = candidates(site, None, able, Times(where), ())
    assert found.order[0].name == "native.planes"
