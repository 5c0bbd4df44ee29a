"""The canonical operators of the `qcompile` namespace: each has an executable reference on every device and a fake kernel."""

import torch
from torch import Tensor

from qcompile.meaning import ActivationQuant, dequantize, row_pieces

# FRAGMENT, because the compiled library (qcompile/_C.so) adds operators to the same namespace.
LIBRARY = torch.library.Library("qcompile", "FRAGMENT")

_PIECE = 1 << 21  # elements

LIBRARY.define(
    "quantized_linear(Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? perm, Tensor? bias, Tensor? act_scale, "
    "Tensor? act_zero, int group, str codebook, str activation) -> Tensor"
)
LIBRARY.define("fake_quantize(Tensor x, Tensor? scale, Tensor? zero, str activation) -> Tensor")


def _quantized_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    perm: Tensor | None,
    bias: Tensor | None,
    act_scale: Tensor | None,
    act_zero: Tensor | None,
    group: int,
    codebook: str,
    activation: str,
) -> Tensor:
    """y = act(x)[..., perm] @ W.T + bias with W of meaning.QuantizedWeight; x [..., K] -> y [..., N] in the dtype of x."""
    rounded = ActivationQuant.parse(activation).apply(x, act_scale, act_zero)
    if perm is not None:
        rounded = rounded.index_select(-1, perm)
    # Some rows at a time: in float32 the weight of a large layer would be hundreds of megabytes.
    weight = torch.empty(codes.shape, dtype=x.dtype, device=codes.device)
    for part in row_pieces(codes.shape[0], codes.shape[1], _PIECE):
        points = None if zeros is None else zeros[part]
        weight[part] = dequantize(codes[part], scales[part], points, group, codebook, x.dtype)
    return torch.nn.functional.linear(rounded, weight, None if bias is None else bias.to(x.dtype))


def _quantized_linear_fake(x: Tensor, codes: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def _fake_quantize(x: Tensor, scale: Tensor | None, zero: Tensor | None, activation: str) -> Tensor:
    """x rounded by the `ActivationQuant` that `activation` spells; a fresh tensor in the dtype of x."""
    rounded = ActivationQuant.parse(activation).apply(x, scale, zero)
    return rounded.clone() if rounded is x else rounded


def _fake_quantize_fake(x: Tensor, scale: Tensor | None, zero: Tensor | None, activation: str) -> Tensor:
    return torch.empty_like(x)


LIBRARY.impl("quantized_linear", _quantized_linear, "CompositeExplicitAutograd")
LIBRARY.impl("fake_quantize", _fake_quantize, "CompositeExplicitAutograd")
torch.library.register_fake("qcompile::quantized_linear", _quantized_linear_fake, lib=LIBRARY)
torch.library.register_fake("qcompile::fake_quantize", _fake_quantize_fake, lib=LIBRARY)

quantized_linear = torch.ops.qcompile.quantized_linear.default
fake_quantize = torch.ops.qcompile.fake_quantize.default
