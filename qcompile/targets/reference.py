"""Target `reference`: the canonical operator itself. It takes everything and is slow, so it runs only where asked for by name."""

from torch import Tensor

from qcompile import operators
from qcompile.kernel import Kernel, Site
from qcompile.meaning import Operands

NEVER_BY_SPEED = 1e6  # seconds: it dequantizes the whole weight on every call


def pack(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    """The operands that are there, as they are and in the order of `Operands`."""
    return tuple(tensor for tensor in weight if tensor is not None)


def operands(packed: tuple[Tensor, ...], site: Site) -> Operands:
    """What `pack` made a tuple of; the site says which operands there were."""
    rest = list(packed)

    def take(there: bool) -> Tensor | None:
        return rest.pop(0) if there else None

    codes, scales = rest.pop(0), rest.pop(0)
    zeros, perm, bias = take(not site.symmetric), take(site.act_order), take(site.has_bias)
    scale = take(site.activation.kind == "tensor")
    return Operands(codes, scales, zeros, perm, bias, scale, take(bool(rest)))


def call(x: Tensor, packed: tuple[Tensor, ...], site: Site) -> Tensor:
    result: Tensor = operators.quantized_linear(
        x, *operands(packed, site), group=site.group, codebook=site.codebook, activation=site.activation.spec
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
