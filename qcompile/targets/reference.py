"""Target `reference`: the canonical operator itself. It takes everything and is slow, so it runs only where asked for by name."""

from torch import Tensor

from qcompile import operators
from qcompile.kernel import Extras, Kernel, Site
from qcompile.meaning import Operands

NEVER_BY_SPEED = 1e6  # seconds: it dequantizes the whole weight on every call


def pack(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """The weight as it is."""
    return tuple(tensor for tensor in (*weight[:3], *weight[7:]) if tensor is not None)


def call(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    codes, scales, *more = packed
    rest = iter(more)
    zeros, outer, offsets, outer_offset = (
        next(rest) if there else None for there in (not site.symmetric, site.outer, site.offset, site.outer_offset)
    )
    result: Tensor = operators.quantized_linear(
        x,
        codes,
        scales,
        zeros,
        *extras,
        outer,
        offsets,
        outer_offset,
        group=site.group,
        codebook=site.codebook,
        activation=site.activation.spec,
        outer_group=site.outer_group,
    )
    return result


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        name="reference.quantized_linear",
        missing=lambda where: (),
        refuses=lambda site: (),
        pack=pack,
        call=call,
        seconds=lambda site, m, where: NEVER_BY_SPEED,
    ),
)
