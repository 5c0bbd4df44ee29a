"""The front door's product: one operator for a whole layer, because Dynamo traces every layer of a model.

Our back end has AOTAutograd take it apart (`TAKEN_APART`), so that recognition sees `dequantize_packed` and a product.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qcompile.operators import LIBRARY, dequantize_packed


class Structure(NamedTuple):
    """The static arguments of one layer's dequantization.

    activation: the spec of meaning.ActivationQuant, "none" for weight-only layers.
    """

    layout: str
    bits: int
    group: int
    n: int
    k: int
    activation: str = "none"

    @property
    def spec(self) -> str:
        """All in one text: Dynamo guards it as one value on every call, a tuple as eight."""
        return " ".join(map(str, self))

    @staticmethod
    @cache
    def parse(spec: str) -> "Structure":
        """What `spec` gave."""
        layout, bits, group, n, k, activation = spec.split()
        return Structure(layout, int(bits), int(group), int(n), int(k), activation)


LIBRARY.define(
    "packed_linear(Tensor x, Tensor packed, Tensor scales, Tensor? zeros, Tensor? g_idx, Tensor? bias, str spec) -> Tensor"
)


def _dense(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, structure: Structure) -> Tensor:
    layout, bits, group, n, k, _ = structure
    dense: Tensor = dequantize_packed(packed, scales, zeros, g_idx, layout, bits, group, n, k, x.dtype)
    return dense


def _packed_linear(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, bias: Tensor | None, spec: str
) -> Tensor:
    """y = x @ W.T + bias in the dtype of x, x [..., K] -> [..., N]; W of dequantize_packed, spec of Structure.

    The activation of `spec` is not applied: x comes rounded.
    """
    weight = _dense(x, packed, scales, zeros, g_idx, Structure.parse(spec))
    return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _packed_linear_fake(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, bias: Tensor | None, spec: str
) -> Tensor:
    structure = Structure.parse(spec)
    torch._check(x.shape[-1] == structure.k, lambda: f"expected x of shape [..., {structure.k}], got {list(x.shape)}")
    return x.new_empty((*x.shape[:-1], structure.n))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, scales, zeros, g_idx, bias, spec = inputs
    ctx.save_for_backward(packed, scales, zeros, g_idx)
    ctx.spec, ctx.bias = spec, None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients of x and bias. A packed weight is a constant: its scales get none, as from `dequantize_packed`."""
    packed, scales, zeros, g_idx = ctx.saved_tensors
    of_x = grad @ _dense(grad, packed, scales, zeros, g_idx, Structure.parse(ctx.spec)) if ctx.needs_input_grad[0] else None
    of_bias = grad.flatten(0, -2).sum(0).to(ctx.bias) if ctx.needs_input_grad[5] else None
    return of_x, None, None, None, None, of_bias, None


LIBRARY.impl("packed_linear", _packed_linear, "CompositeExplicitAutograd")
torch.library.register_fake("qcompile::packed_linear", _packed_linear_fake, lib=LIBRARY)
torch.library.register_autograd("qcompile::packed_linear", _backward, setup_context=_keep, lib=LIBRARY)

packed_linear = torch.ops.qcompile.packed_linear.default
# For AOTAutograd: operator -> what it consists of.
TAKEN_APART = {packed_linear: _packed_linear}
