"""Target `zentorch`: AMD's operators for Zen processors, W4A16 and W8A8, bound by their live schemas.

Found by running zentorch 2.13.0.2: both operators reject an input without rows, and dynamic_qlinear answers a row that holds NaN or
infinity with numbers (such rows are marked here). float16 scales are read as bfloat16 without an error, so they are converted when
packing. dynamic_qlinear is wrong for one row when K > 1024, K % 4 != 0 and N % 16 != 0. Both keep a reordered copy of the weight
for the life of the process, found again by its address and shape; `zentorch_prepack` shows how dynamic_qlinear gets by without.
"""

import torch
from torch import Tensor

from qcompile.hardware import Platform, platform
from qcompile.hardware.cost import predicted
from qcompile.hardware.libraries import zentorch_hardware
from qcompile.kernel import (
    Extras,
    Kernel,
    Reasons,
    Site,
    integer_codes,
    most_bits,
    no_offsets,
    on_cpu,
    one_level,
    rounding_permitted,
    unmet,
    weight_only,
    whole_groups,
)
from qcompile.meaning import Operands
from qcompile.targets import zentorch_prepack
from qcompile.targets.binding import Foreign, empty_output, marked, no_rows
from qcompile.targets.zentorch_ops import QLINEAR, QLINEAR_ROUNDING, REPACK, WOQ
from qcompile.weights.fingerprint import of_processor

# time / limit by least row count, weights cold in cache; woq_linear goes over to dequantizing once per call at M = 256.
WOQ_FACTORS = ((1, 2.78), (2, 3.11), (4, 3.37), (8, 3.30), (16, 2.68), (64, 2.48), (256, 1.06))
QLINEAR_FACTORS = ((1, 1.04), (16, 1.39), (32, 1.18), (64, 1.10), (128, 1.06))


def missing(where: Platform, *operators: Foreign) -> Reasons:
    """What this platform lacks for zentorch's operators: the processor, the library, an operator or one of its arguments."""
    if reasons := zentorch_hardware(where):
        return reasons
    library = where.library("zentorch")
    if not library.present:
        return (library.detail or f"zentorch is {library.state}",)
    if QLINEAR in operators and not where.simulated:
        zentorch_prepack.works()  # asked for here, because a first question while tracing would be too late to run anything
    return tuple(reason for op in operators if not (where.simulated and op.live() is None) for reason in op.reasons())


def readable_scales(scales: Tensor, site: Site) -> Tensor:
    """The scales in a dtype both operators read rightly: bfloat16 as they are, everything else as float32."""
    return scales if site.scale_dtype == torch.bfloat16 else scales.to(torch.float32)


def readable_extras(extras: Extras, site: Site) -> Extras:
    """float32 holds a bias of any dtype, and both operators take it."""
    return extras._replace(bias=None if extras.bias is None else extras.bias.to(torch.float32).contiguous())


def layout() -> str:
    """The library may order weights differently for each of its versions and for each processor."""
    library = platform().library("zentorch")
    return f"zentorch {library.version} {of_processor()}"


def refuses_woq(site: Site) -> Reasons:
    return unmet(
        on_cpu(site),
        integer_codes(site),
        no_offsets(site),
        one_level(site),
        most_bits(site, 4),
        (site.k % 8 == 0, f"takes K in multiples of 8, got K={site.k}"),
        # With odd groups it reads scales from elsewhere: wrong numbers or a crash (zentorch 2.13.0.2).
        (site.group % 2 == 0, f"takes groups of an even number of values, got {site.group}"),
        whole_groups(site),
        (site.dtype == torch.bfloat16, f"takes bfloat16 activations, got {site.dtype}"),
        weight_only(site),
    )


def pack_woq(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(nibbles int32 [N, K/8], scales [G, N], zeros int8 [G, N] if any).

    With zero points the operator reads nibbles as 0 .. 15, without them as -8 .. 7; the canonical codes have the same signs.
    """
    packed = [zentorch_prepack.repack(weight.codes), readable_scales(weight.scales, site).t().contiguous()]
    if weight.zeros is not None:
        packed.append(weight.zeros.t().contiguous())
    return tuple(packed)


def call_woq(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    if no_rows(x):
        return empty_output(x, site.n)
    nibbles, scales, *zeros = packed
    points = zeros[0] if zeros else None
    flat = extras.rows(x, site.k)
    result = WOQ(input=flat, weight=nibbles.t(), weight_scales=scales, weight_zero_points=points, bias=extras.bias)
    return result.reshape((*x.shape[:-1], site.n))


def seconds_woq(site: Site, m: int, where: Platform) -> float:
    size = site.n * site.k / 2 + site.n * site.groups * (2 if site.symmetric else 3)
    return predicted(where, size, 2.0 * m * site.n * site.k, m, WOQ_FACTORS)


def refuses_qlinear(site: Site) -> Reasons:
    kind = site.activation.kind
    return unmet(
        on_cpu(site),
        integer_codes(site),
        no_offsets(site),
        one_level(site),
        (site.group == site.k, f"takes one scale per output channel, got groups of {site.group} along K={site.k}"),
        (site.k % 4 == 0, f"takes K in multiples of 4, got K={site.k}"),
        (site.symmetric or site.bits <= 6, f"takes no zero points of {site.bits}-bit weights: codes minus zeros must fit int8"),
        (site.dtype in (torch.bfloat16, torch.float32), f"takes bfloat16 or float32 activations, got {site.dtype}"),
        rounding_permitted(site),
        (kind in ("none", "token"), f"rounds activations per token and symmetrically, this linear wants {site.activation.spec}"),
    )


def pack_qlinear(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """(codes int8 [N, K] or prepacked bytes, scales [N]); narrow codes have their zeros subtracted."""
    codes = weight.codes if weight.zeros is None else weight.codes - weight.zeros
    stored = zentorch_prepack.prepack(codes) if zentorch_prepack.serves(site.n, site.k) else codes.contiguous()
    return (stored, readable_scales(weight.scales, site).reshape(-1))


def call_qlinear(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    if no_rows(x):
        return empty_output(x, site.n)
    codes, scales = packed
    flat = extras.rows(x, site.k)
    prepacked = zentorch_prepack.serves(site.n, site.k)
    weight = codes.as_strided((site.n, site.k), (site.k, 1)) if prepacked else codes
    result = QLINEAR(input=flat, weight=weight, weight_scales=scales, bias=extras.bias, is_weight_prepacked=prepacked)
    return marked(result, flat).reshape((*x.shape[:-1], site.n))


def seconds_qlinear(site: Site, m: int, where: Platform) -> float:
    size = site.n * site.k + 4.0 * site.n
    return predicted(where, size, 2.0 * m * site.n * site.k, m, QLINEAR_FACTORS, int8=True)


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        name="zentorch.dynamic_qlinear",
        missing=lambda where: missing(where, QLINEAR),
        refuses=refuses_qlinear,
        stored_bits=8,
        pack=pack_qlinear,
        call=call_qlinear,
        extras=readable_extras,
        seconds=seconds_qlinear,
        activation=QLINEAR_ROUNDING,
        default_activation=QLINEAR_ROUNDING,
        retire_addresses=True,
        layout=layout,
    ),
    Kernel(
        name="zentorch.woq_linear",
        missing=lambda where: missing(where, WOQ, REPACK),
        refuses=refuses_woq,
        pack=pack_woq,
        call=call_woq,
        extras=readable_extras,
        seconds=seconds_woq,
        retire_addresses=True,
        layout=layout,
    ),
)
