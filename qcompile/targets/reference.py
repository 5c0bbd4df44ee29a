"""Target `reference`: the canonical operator itself. It takes everything and is slow, so it runs only where asked for by name."""

from torch import Tensor

from qcompile import operators
from qcompile.kernel import Extras, Kernel, Site
from qcompile.meaning import Operands

NEVER_BY_SPEED = 1e6  # seconds: it dequantizes the whole weight on every call


def pack(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """The weight as it is."""
    return tuple(tensor for tensor in (*weight[:3], weight.outer) if tensor is not None)


def call(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    codes, scales, *rest = packed
    outer = rest.pop() if site.outer else None
    result: Tensor = operators.quantized_linear(
        x,
        codes,
        scales,
        rest[0] if rest else None,
        *extras,
        outer,
        group=site.group,
        codebook=site.codebook,
        activation=site.activation.spec,
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
