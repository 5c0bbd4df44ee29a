"""Target `rdna3`: W4A16 on gfx1100, by our own gptq_gemm_rdna3 (csrc/rocm) or by the operator of that name in a vLLM build."""

from typing import Any

import torch
from torch import Tensor

from qcompile.hardware import Platform
from qcompile.hardware.cost import predicted
from qcompile.kernel import (
    Extras,
    Kernel,
    Reasons,
    Site,
    integer_codes,
    no_offsets,
    one_level,
    scales_fit_float16,
    unmet,
    weight_only,
)
from qcompile.meaning import Operands
from qcompile.targets.binding import Foreign
from qcompile.targets.rdna3_ops import (
    has_device_code,
    operator,
    packed_codes,
    packed_zeros,
    symmetric_zeros,
)

ARCHITECTURE = "gfx1100"
LARGEST_ZERO = 16  # format v1 stores the zero point less one in four bits
SYMMETRIC_OFFSET = 8  # codes -8 .. 7 become 0 .. 15

# Time over the limit, by rows; from the instruction counts in docs/rdna3.md (there is no card to measure on).
OUR_FACTORS = ((1, 1.1), (4, 1.15), (8, 1.3), (9, 1.6), (32, 1.9), (128, 1.6), (512, 1.35))
# As published for vLLM's kernel: 32 us instead of 9 for 4096 x 4096 at one row, 28 % of the peak with many.
VLLM_FACTORS = ((1, 3.6),)

WHY_NOT = {
    "gfx1101": "it has other numbers of units and was never tried",
    "gfx1102": "it has other numbers of units and was never tried",
    "gfx1151": "forcing kernels for gfx1100 onto it gave wrong results",
    "gfx90a": "CDNA has no WMMA instructions and other wave sizes",
    "gfx942": "CDNA has no WMMA instructions and other wave sizes",
    "gfx1030": "RDNA2 has no WMMA instructions",
    "gfx1200": "RDNA4 lays out WMMA operands differently",
    "gfx1201": "RDNA4 lays out WMMA operands differently",
}


def _vllm_fake(a: Tensor, b_q_weight: Tensor, *_: object, **__: object) -> Tensor:
    return a.new_empty((a.shape[0], b_q_weight.shape[1]))


# vLLM removed the argument b_g_idx together with act-order; both signatures are in use.
VLLM = Foreign(
    "_rocm_C",
    "gptq_gemm_rdna3",
    ("a", "b_q_weight", "b_qzeros", "b_scales", "use_v2_format"),
    "(Tensor a, Tensor b_q_weight, Tensor b_qzeros, Tensor b_scales, bool use_v2_format) -> Tensor",
    _vllm_fake,
)
VLLM_WITH_PERMUTATION = Foreign(
    "_rocm_C",
    "gptq_gemm_rdna3",
    ("a", "b_q_weight", "b_qzeros", "b_scales", "b_g_idx", "use_v2_format"),
    "(Tensor a, Tensor b_q_weight, Tensor b_qzeros, Tensor b_scales, Tensor b_g_idx, bool use_v2_format) -> Tensor",
    _vllm_fake,
)


def takes_permutation() -> bool:
    """Whether vLLM's operator, as it is registered now, has the argument b_g_idx (its newest release has not)."""
    live: Any = VLLM.live()
    return live is not None and any(argument.name == "b_g_idx" for argument in live._schema.arguments)


def vllm_operator() -> Foreign:
    return VLLM_WITH_PERMUTATION if takes_permutation() else VLLM


def wrong_architecture(where: Platform) -> Reasons:
    """Why the accelerators of a platform cannot run code for gfx1100; empty if one can."""
    found = where.gpu("rocm")
    if ARCHITECTURE in found:
        return ()
    if not found:
        return (f"runs on {ARCHITECTURE} (Radeon RX 7900, PRO W7900 and W7800), this machine has no AMD GPU",)
    told = "; ".join(f"{arch}: {WHY_NOT[arch]}" for arch in dict.fromkeys(found) if arch in WHY_NOT)
    return (f"runs on {ARCHITECTURE} exactly, this machine has {', '.join(dict.fromkeys(found))}{f' ({told})' if told else ''}",)


def missing_hardware(where: Platform) -> Reasons:
    return wrong_architecture(where) + unmet(
        (where.torch_build == "rocm", f"needs a torch built for ROCm, this one is built for {where.torch_build}"),
    )


def missing_ours(where: Platform) -> Reasons:
    """What this platform lacks for our kernel: the card, a torch for ROCm, or a build of qcompile with that torch."""
    built = where.simulated or has_device_code()
    return missing_hardware(where) + unmet(
        (built, "this qcompile was built without the kernels for ROCm: install it again with a torch for ROCm"),
    )


def missing_vllm(where: Platform) -> Reasons:
    library = where.library("vllm")
    absent = () if library.present else (library.detail or f"vllm is {library.state}",)
    live = VLLM.live()
    schema = () if absent or (live is None and where.simulated) else vllm_operator().reasons()
    return (*missing_hardware(where), *absent, *schema)


def stores_v2(site: Site) -> bool:
    """Whether zero points are stored as they are (v2) or less one (v1, which also holds 16 but not 0)."""
    return not site.symmetric and site.zero_range[1] < LARGEST_ZERO


def common_refusals(site: Site) -> Reasons:
    least, most = site.zero_range
    return unmet(
        (site.device == "cuda", f"runs on the GPU, this weight is on {site.device}"),  # torch's name for ROCm devices too
        integer_codes(site),
        no_offsets(site),
        one_level(site),
        (site.bits <= 4, f"takes 4-bit weights, got {site.bits} bits"),
        (site.dtype in (torch.float16, torch.bfloat16), f"takes float16 or bfloat16 activations, got {site.dtype}"),
        scales_fit_float16(site),
        weight_only(site),
        (site.n % 8 == 0, f"takes N in multiples of 8, got N={site.n}"),
        (site.k % 32 == 0, f"takes K in multiples of 32, got K={site.k}"),
        (
            site.group > 0 and site.group % 32 == 0 and site.k % site.group == 0,
            f"takes groups that are multiples of 32 and divide K, got a group of {site.group} with K={site.k}"
            + (" (channelwise)" if site.group in (-1, site.k) else ""),
        ),
        (
            site.symmetric or (least >= 0 and most <= LARGEST_ZERO and not (least == 0 and most == LARGEST_ZERO)),
            f"takes zero points of 0 to 15 or of 1 to 16, got {least} to {most}",
        ),
    )


def refuses_vllm(site: Site) -> Reasons:
    return common_refusals(site) + unmet(
        (
            not site.act_order or takes_permutation(),
            "_rocm_C::gptq_gemm_rdna3 here has no argument b_g_idx, so it cannot permute K (act-order)",
        ),
    )


def pack(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(b_q_weight int32 [K/8, N], b_qzeros int32 [G, N/8], b_scales [G, N])."""
    n, k, groups = site.n, site.k, site.groups
    if weight.zeros is None:
        codes = packed_codes(weight.codes, n, k, SYMMETRIC_OFFSET)
        zeros = symmetric_zeros(weight.codes, n, groups)
    else:
        codes = packed_codes(weight.codes, n, k, 0)
        zeros = packed_zeros(weight.zeros, n, groups, 0 if stores_v2(site) else -1)
    return (codes, zeros, weight.scales.to(site.dtype).t().contiguous())


def readable_extras(extras: Extras, site: Site) -> Extras:
    """The permutation as int32, the bias in the dtype of x."""
    perm, bias = extras.perm, extras.bias
    return Extras(None if perm is None else perm.to(torch.int32), None if bias is None else bias.to(site.dtype))


def call(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    codes, zeros, scales = packed
    perm = codes.new_empty((0,)) if extras.perm is None else extras.perm
    y: Tensor = operator()(x.reshape(-1, site.k).contiguous(), codes, zeros, scales, perm, stores_v2(site))
    return extras.plus_bias(y).reshape((*x.shape[:-1], site.n))


def call_vllm(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    """vLLM's operator; columns are permuted before it, because two of its paths ignore a permutation that they are given."""
    codes, zeros, scales = packed
    given = {
        "a": extras.rows(x, site.k),
        "b_q_weight": codes,
        "b_qzeros": zeros,
        "b_scales": scales,
        "use_v2_format": stores_v2(site),
    }
    if takes_permutation():
        given["b_g_idx"] = codes.new_empty((0,))
    return extras.plus_bias(vllm_operator()(**given)).reshape((*x.shape[:-1], site.n))


def bytes_read(site: Site) -> float:
    return site.n * site.k / 2 + site.n * site.groups * 2.5


def seconds(site: Site, m: int, where: Platform) -> float:
    return predicted(where, bytes_read(site), 2.0 * m * site.n * site.k, m, OUR_FACTORS)


def seconds_vllm(site: Site, m: int, where: Platform) -> float:
    return predicted(where, bytes_read(site), 2.0 * m * site.n * site.k, m, VLLM_FACTORS)


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        name="rdna3.gptq_gemm",
        missing=missing_ours,
        refuses=common_refusals,
        pack=pack,
        call=call,
        extras=readable_extras,
        seconds=seconds,
    ),
    Kernel(
        name="rdna3.vllm_gptq_gemm",
        missing=missing_vllm,
        refuses=refuses_vllm,
        pack=pack,
        call=call_vllm,
        extras=readable_extras,
        seconds=seconds_vllm,
    ),
)
