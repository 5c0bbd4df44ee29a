"""Which sites the rows of target rdna3 take, on which platforms, and the sentence for every refusal."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.emulated_rdna3 import case
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.hardware import KNOWN, Accelerator, platform
from qcompile.kernel import Kernel, Site
from qcompile.meaning import Operands
from qcompile.targets import rdna3
from qcompile.targets.rdna3_ops import has_device_code
from qcompile.targets.registry import find

SITE = Site(n=64, k=128, bits=4, group=32, dtype=torch.float16, scale_dtype=torch.float16, device="cuda")
CARD = KNOWN["gfx1100"]
ROWS = ("rdna3.gptq_gemm", "rdna3.vllm_gptq_gemm")

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "device": ({"device": "cpu"}, "runs on the GPU, this weight is on cpu"),
    "N": ({"n": 60}, "takes N in multiples of 8, got N=60"),
    "K": ({"k": 144, "group": 48}, "takes K in multiples of 32, got K=144"),
    "small group": ({"group": 16}, "takes groups that are multiples of 32 and divide K, got a group of 16 with K=128"),
    "group across rows": ({"group": 96}, "takes groups that are multiples of 32 and divide K, got a group of 96 with K=128"),
    "channelwise": ({"group": -1}, "got a group of -1 with K=128 (channelwise)"),
    "channelwise with odd K": ({"k": 144, "group": 144}, "got a group of 144 with K=144 (channelwise)"),
    "dtype": ({"dtype": torch.float32}, "takes float16 or bfloat16 activations, got torch.float32"),
    "scales": ({"scale_dtype": torch.bfloat16}, "keeps scales as float16 for float16 activations"),
    "bits": ({"bits": 8}, "takes 4-bit weights, got 8 bits"),
    "code book": ({"codebook": "e2m1"}, "takes integer codes, these index the code book 'e2m1'"),
    "activations": ({"activation": ActivationQuant(kind="token")}, "does not quantize activations, this linear wants token"),
    "zero points": ({"symmetric": False, "zero_range": (0, 16)}, "takes zero points of 0 to 15 or of 1 to 16, got 0 to 16"),
    "negative zero points": (
        {"symmetric": False, "zero_range": (-1, 3)},
        "takes zero points of 0 to 15 or of 1 to 16, got -1 to 3",
    ),
}

TAKEN: dict[str, dict[str, Any]] = {
    "symmetric": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "act-order": {"act_order": True},
    "AWQ": {"symmetric": False, "zero_range": (0, 15)},
    "GPTQ v1 with the effective zero 16": {"symmetric": False, "zero_range": (1, 16)},
    "one group as long as K": {"group": 128},
    "bias": {"has_bias": True},
    "float32 scales": {"dtype": torch.bfloat16, "scale_dtype": torch.float32},
}


def ours() -> Kernel:
    return find("rdna3.gptq_gemm")


@pytest.mark.parametrize("rule", REFUSED)
@pytest.mark.parametrize("row", ROWS)
def test_a_site_is_refused_with_its_reason_and_no_other(row: str, rule: str) -> None:
    changes, reason = REFUSED[rule]
    reasons = find(row).refuses(replace(SITE, **changes))
    assert any(reason in sentence for sentence in reasons), reasons
    others = {"channelwise with odd K": 1, "K": 1}.get(rule, 0)  # such a K cannot have a fitting group either
    assert len(reasons) == 1 + others


@pytest.mark.parametrize("variant", TAKEN)
def test_sites_that_our_kernel_takes(variant: str) -> None:
    assert ours().reasons(replace(SITE, **TAKEN[variant]), CARD) == ()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", ["gfx1030", "gfx90a", "gfx942", "gfx1101", "gfx1102", "gfx1151", "gfx1201"])
def test_other_amd_architectures_are_refused_by_name(row: str, name: str) -> None:
    reasons = find(row).missing(KNOWN[name])
    assert any(f"runs on gfx1100 exactly, this machine has {name} ({name}: {rdna3.WHY_NOT[name]})" in reason for reason in reasons)


@pytest.mark.parametrize("name", ["zen4", "x86-64-avx2", "cuda-sm90", "xpu"])
def test_machines_without_an_amd_gpu_are_refused(name: str) -> None:
    reasons = ours().missing(KNOWN[name])
    assert any("this machine has no AMD GPU" in reason for reason in reasons)
    assert any(reason.startswith("needs a torch built for ROCm, this one is built for ") for reason in reasons)


def test_here_it_says_what_is_missing() -> None:
    if "gfx1100" in platform().gpu("rocm"):
        pytest.skip("this machine has the card")
    assert ours().missing(platform()) != ()


def test_a_second_gpu_of_another_kind_does_not_matter() -> None:
    both = replace(CARD, accelerators=(Accelerator("rocm", "gfx1036", "simulated"), *CARD.accelerators))
    assert ours().missing(both) == ()


def test_a_build_without_device_code_is_refused_on_the_card() -> None:
    real = replace(CARD, simulated=False)
    assert any("install it again with a torch for ROCm" in reason for reason in ours().missing(real)) is not has_device_code()


def test_vllm_is_only_used_where_it_is_loaded() -> None:
    row = find("rdna3.vllm_gptq_gemm")
    assert row.missing(CARD) == ("vllm is not part of the simulated platform gfx1100",)
    loaded = platform("gfx1100,vllm=present")
    assert row.missing(loaded) == ()
    assert row.seconds(SITE, 1, loaded) > ours().seconds(SITE, 1, loaded)


SIGNATURES = {
    5: "(Tensor a, Tensor b_q_weight, Tensor b_qzeros, Tensor b_scales, bool use_v2_format) -> Tensor",
    6: "(Tensor a, Tensor b_q_weight, Tensor b_qzeros, Tensor b_scales, Tensor b_g_idx, bool use_v2_format) -> Tensor",
}


@pytest.fixture(params=sorted(SIGNATURES))
def vllm(request: pytest.FixtureRequest, emulated_op: Any) -> Iterator[int]:
    """vLLM's operator with 5 or 6 arguments, computed by the emulated kernel; yields the number of arguments."""
    libraries: Any = torch.library
    library = libraries.Library("_rocm_C", "FRAGMENT")
    library.define(f"gptq_gemm_rdna3{SIGNATURES[request.param]}")

    def product(a: Tensor, words: Tensor, zeros: Tensor, scales: Tensor, *rest: Any) -> Tensor:
        result: Tensor = emulated_op(a, words, zeros, scales, rest[0] if len(rest) == 2 else words.new_empty(0), rest[-1])
        return result

    library.impl("gptq_gemm_rdna3", product, "CPU")
    yield request.param
    library._destroy()


def test_vllms_operator_is_bound_by_its_live_schema(vllm: int) -> None:
    row = find("rdna3.vllm_gptq_gemm")
    one = case(3, 64, 128, 32, torch.float16)
    packed = (one.qweight, one.qzeros, one.scales)
    where = replace(SITE, symmetric=False, zero_range=(1, 16))
    assert row.reasons(where, platform("gfx1100,vllm=present")) == ()
    assert one.error(row.run(one.a, packed, where)) <= 1e-3
    assert rdna3.takes_permutation() is (vllm == 6)


def test_with_five_arguments_act_order_is_refused_for_that_reason(vllm: int) -> None:
    row = find("rdna3.vllm_gptq_gemm")
    where = replace(SITE, symmetric=False, zero_range=(1, 16), act_order=True)
    reasons = row.refuses(where)
    if vllm == 5:
        assert reasons == ("_rocm_C::gptq_gemm_rdna3 here has no argument b_g_idx, so it cannot permute K (act-order)",)
    else:
        assert reasons == ()
        one = case(3, 64, 128, 32, torch.float16, act_order=True)
        assert one.error(row.run(one.a, (one.qweight, one.qzeros, one.scales, one.perm), where)) <= 1e-3


def test_our_row_computes_leading_dimensions_and_bias(emulated_op: Any) -> None:
    one = case(6, 64, 128, 32, torch.bfloat16, act_order=True)
    where = replace(SITE, dtype=torch.bfloat16, symmetric=False, zero_range=(1, 16), act_order=True, has_bias=True)
    bias = torch.randn(64).bfloat16()
    y = ours().run(one.a.reshape(2, 3, 128), (one.qweight, one.qzeros, one.scales, one.perm, bias), where)
    assert y.shape == (2, 3, 64)
    one.expected = one.expected + bias.double()
    assert one.error(y.reshape(6, 64)) <= 5e-3
    packed = ours().packed(
        Operands(torch.zeros(64, 128, dtype=torch.int8), torch.ones(64, 4), bias=bias), replace(SITE, has_bias=True)
    )
    assert ours().run(torch.zeros(0, 128).half(), packed, replace(SITE, has_bias=True)).shape == (0, 64)
