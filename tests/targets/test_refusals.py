"""Every rule by which a row refuses a site or a platform, each with its sentence; and nothing is refused without need."""

from dataclasses import replace

import pytest
import torch
from support.weights import random_weight

from qcompile.activations import ActivationQuant
from qcompile.api import pack_linear
from qcompile.errors import KernelRefusedError, UnknownNameError
from qcompile.hardware import platform
from qcompile.kernel import Site
from qcompile.targets.registry import find, kernels

TOKEN = ActivationQuant("token")
W4 = Site(n=128, k=256, bits=4, group=64, scale_dtype=torch.bfloat16)
W8 = replace(W4, bits=8, group=256)
W8A8 = replace(W8, activation=TOKEN)
NO_ZEROS = "takes no zero points of 8-bit weights: codes minus zeros must fit int8"
UNASKED = "quantizes activations to int8, which the checkpoint does not ask for (the option allow_a8 permits it)"
XPU = replace(W4, device="xpu")

TAKES = (
    ("zentorch.woq_linear", W4),
    ("zentorch.woq_linear", replace(W4, bits=3, act_order=True, has_bias=True, symmetric=False, zero_range=(0, 16))),
    ("zentorch.woq_linear", replace(W4, n=7, k=24, group=8)),
    ("zentorch.dynamic_qlinear", W8A8),
    ("zentorch.dynamic_qlinear", replace(W8A8, dtype=torch.float32, act_order=True, n=1, k=4, group=4)),
    ("zentorch.dynamic_qlinear", replace(W8, allow_a8=True)),
    ("zentorch.dynamic_qlinear", replace(W8A8, bits=4, symmetric=False)),
    ("torch.int4pack", W4),
    ("torch.int4pack", replace(W4, dtype=torch.float16, scale_dtype=torch.float16, group=96, k=192)),
    ("torch.int8pack", W8),
    ("torch.qlinear_int8", W8A8),
    ("torch.qlinear_int8", replace(W8A8, activation=ActivationQuant("token_asymmetric"), n=3, k=7, group=7)),
    ("torch.qlinear_int8", replace(W8A8, activation=ActivationQuant("tensor"))),
    ("torch.qlinear_int8", replace(W8, allow_a8=True)),
    ("xpu.int4_gemm_w4a16", XPU),
    ("xpu.int4_gemm_w4a16", replace(XPU, group=256, act_order=True, symmetric=False, zero_range=(0, 15))),
    ("xpu.int4pack", replace(XPU, dtype=torch.float16, scale_dtype=torch.float16)),
    ("reference.quantized_linear", replace(W8A8, codebook="e2m1", dtype=torch.float64, device="cuda")),
)

REFUSES = (
    ("zentorch.woq_linear", replace(W4, device="cuda"), "runs on the CPU, this linear is on cuda"),
    ("zentorch.woq_linear", replace(W4, codebook="e2m1"), "takes integer codes, these index the code book 'e2m1'"),
    ("zentorch.woq_linear", W8, "takes weights of up to 4 bits, got 8"),
    ("zentorch.woq_linear", replace(W4, k=12, group=12), "takes K in multiples of 8, got K=12"),
    ("zentorch.woq_linear", replace(W4, dtype=torch.float32), "takes bfloat16 activations, got torch.float32"),
    ("zentorch.woq_linear", replace(W4, dtype=torch.float16), "takes bfloat16 activations, got torch.float16"),
    ("zentorch.woq_linear", replace(W4, activation=TOKEN), "does not quantize activations, this linear wants token/127.5/-128"),
    ("zentorch.dynamic_qlinear", replace(W8A8, device="xpu"), "runs on the CPU, this linear is on xpu"),
    ("zentorch.dynamic_qlinear", replace(W8A8, codebook="e2m1"), "takes integer codes, these index the code book 'e2m1'"),
    ("zentorch.dynamic_qlinear", replace(W8A8, group=64), "takes one scale per output channel, got groups of 64 along K=256"),
    ("zentorch.dynamic_qlinear", replace(W8A8, k=6, group=6), "takes K in multiples of 4, got K=6"),
    (
        "zentorch.dynamic_qlinear",
        replace(W8A8, symmetric=False),
        NO_ZEROS,
    ),
    ("zentorch.dynamic_qlinear", replace(W8A8, dtype=torch.float16), "takes bfloat16 or float32 activations, got torch.float16"),
    (
        "zentorch.dynamic_qlinear",
        W8,
        UNASKED,
    ),
    (
        "zentorch.dynamic_qlinear",
        replace(W8A8, activation=ActivationQuant("tensor")),
        "rounds activations per token and symmetrically, this linear wants tensor",
    ),
    (
        "zentorch.dynamic_qlinear",
        replace(W8A8, activation=ActivationQuant("token_asymmetric")),
        "rounds activations per token and symmetrically, this linear wants token_asymmetric",
    ),
    ("torch.int4pack", replace(W4, device="cuda"), "runs on the CPU, this linear is on cuda"),
    ("torch.int4pack", replace(W4, codebook="e2m1"), "takes integer codes, these index the code book 'e2m1'"),
    ("torch.int4pack", W8, "takes weights of up to 4 bits, got 8"),
    ("torch.int4pack", replace(W4, group=16), "takes groups in multiples of 32, got 16"),
    ("torch.int4pack", replace(W4, n=24), "takes N in multiples of 16, got N=24"),
    ("torch.int4pack", replace(W4, dtype=torch.float64), "takes bfloat16, float16 or float32 activations, got torch.float64"),
    ("torch.int4pack", replace(W4, activation=TOKEN), "does not quantize activations, this linear wants token/127.5/-128"),
    (
        "torch.int4pack",
        replace(W4, dtype=torch.float16),
        "keeps scales as float16 for float16 activations, which does not hold every torch.bfloat16 scale",
    ),
    ("torch.int8pack", replace(W8, symmetric=False), "takes symmetric weights, these have zero points"),
    ("torch.int8pack", replace(W8, group=64), "takes one scale per output channel, got groups of 64 along K=256"),
    ("torch.int8pack", replace(W8, k=24, group=24), "takes K in multiples of 16, got K=24"),
    ("torch.int8pack", W8A8, "does not quantize activations, this linear wants token/127.5/-128"),
    ("torch.qlinear_int8", replace(W8A8, group=64), "takes one scale per output channel, got groups of 64 along K=256"),
    (
        "torch.qlinear_int8",
        replace(W8A8, symmetric=False),
        NO_ZEROS,
    ),
    (
        "torch.qlinear_int8",
        W8,
        UNASKED,
    ),
    (
        "torch.qlinear_int8",
        replace(W8A8, activation=ActivationQuant("local_nvfp4")),
        "does not know the activation rounding local_nvfp4",
    ),
    ("xpu.int4_gemm_w4a16", W4, "runs on an XPU, this linear is on cpu"),
    ("xpu.int4_gemm_w4a16", replace(XPU, codebook="e2m1"), "takes integer codes, these index the code book 'e2m1'"),
    ("xpu.int4_gemm_w4a16", replace(XPU, bits=8), "takes weights of up to 4 bits, got 8"),
    ("xpu.int4_gemm_w4a16", replace(XPU, group=16), "takes groups in multiples of 32, got 16"),
    ("xpu.int4_gemm_w4a16", replace(XPU, n=12), "takes N in multiples of 8, got N=12"),
    ("xpu.int4_gemm_w4a16", replace(XPU, dtype=torch.float32), "takes float16 or bfloat16 activations, got torch.float32"),
    ("xpu.int4_gemm_w4a16", replace(XPU, activation=TOKEN), "does not quantize activations, this linear wants token/127.5/-128"),
    (
        "xpu.int4_gemm_w4a16",
        replace(XPU, symmetric=False, zero_range=(0, 16)),
        "keeps zero points in 4 bits (0 to 15), got 0 to 16",
    ),
    (
        "xpu.int4_gemm_w4a16",
        replace(XPU, dtype=torch.float16),
        "keeps scales as float16 for float16 activations, which does not hold every torch.bfloat16 scale",
    ),
)

ELSEWHERE = (
    ("zentorch.woq_linear", "zen3", "zentorch needs AVX-512"),
    ("zentorch.woq_linear", "x86-64-avx512", "zentorch needs an AMD Zen processor, this one is GenuineIntel"),
    ("zentorch.woq_linear", "aarch64", "zentorch needs an AMD Zen processor"),
    ("zentorch.woq_linear", "zen4,zentorch=absent", "zentorch is absent"),
    ("zentorch.dynamic_qlinear", "zen5,zentorch=broken", 'pip install "zentorch==2.13.0.2"'),
    ("torch.qlinear_int8", "x86-64-avx2", "saturates on processors without VNNI"),
    ("torch.int4pack", "xpu", "runs on the CPU, this linear is on xpu"),
    ("xpu.int4_gemm_w4a16", "zen4", "runs on an Intel XPU, this platform has none"),
    ("xpu.int4_gemm_w4a16", "gfx1100", "needs a torch built for XPU, this one is built for rocm"),
    ("xpu.int4_gemm_w4a16", "xpu,vllm_xpu_kernels=absent", "vllm_xpu_kernels is absent"),
    ("xpu.int4pack", "cuda-sm90", "needs a torch built for XPU, this one is built for cuda"),
)

ELIGIBLE = (
    ("zentorch.woq_linear", "zen4", W4),
    ("zentorch.dynamic_qlinear", "zen5", W8A8),
    ("torch.int4pack", "aarch64", W4),
    ("torch.qlinear_int8", "x86-64-avx512", W8A8),
    ("xpu.int4_gemm_w4a16", "xpu", W4),
    ("xpu.int4pack", "xpu,vllm_xpu_kernels=absent", W4),
)


@pytest.mark.parametrize(("name", "site"), TAKES)
def test_takes(name: str, site: Site) -> None:
    assert find(name).refuses(site) == ()


@pytest.mark.parametrize(("name", "site", "sentence"), REFUSES)
def test_refuses_for_exactly_this_reason(name: str, site: Site, sentence: str) -> None:
    assert find(name).refuses(site) == (sentence,)


@pytest.mark.parametrize(("name", "where", "words"), ELSEWHERE)
def test_platforms_that_lack_something(name: str, where: str, words: str) -> None:
    assert words in "; ".join(find(name).reasons(W4, platform(where)))


@pytest.mark.parametrize(("name", "where", "site"), ELIGIBLE)
def test_platforms_that_have_everything(name: str, where: str, site: Site) -> None:
    assert find(name).reasons(site, platform(where)) == ()


def test_all_reasons_are_given_at_once() -> None:
    weight = random_weight(24, 12, 6, bits=8, symmetric=False)
    with pytest.raises(KernelRefusedError) as error:
        pack_linear(weight, "torch.int4pack", dtype=torch.float64)
    assert str(error.value).count("\n  - ") == 4


def test_an_unknown_kernel_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"zentorch\.woq_linear"):
        find("zentorch.woq")


def test_reasons_are_sentences_about_every_row() -> None:
    for row in kernels().values():
        for where in ("zen4", "x86-64", "gfx1100", "xpu", "aarch64"):
            reasons = row.reasons(W4, platform(where))
            assert all(reason and not reason.endswith(".") for reason in reasons), (row.name, reasons)


@pytest.mark.parametrize("where", ["zen4", "x86-64-amx", "xpu"])
def test_more_rows_never_take_less_time(where: str) -> None:
    for row in kernels().values():
        if row.reasons(W4, platform(where)):
            continue
        times = [row.seconds(W4, rows, platform(where)) for rows in (1, 128, 4096)]
        assert times == sorted(times), row.name
        assert times[0] > 0
