"""Zentorch's operators as we call them, and how each looks where the library is absent."""

import torch
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.targets.binding import Foreign
from qcompile.targets.nibbles import nibbles

# Half to even, the step is max|x| / 127; found by feeding an identity matrix, then 130 dB against this formula in float32.
QLINEAR_ROUNDING = ActivationQuant(kind="token", divisor=127.0, low=-127)


def _woq_fake(input: Tensor, weight: Tensor, *_: object, **__: object) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[1]))


def _qlinear_fake(input: Tensor, weight: Tensor, *_: object, **__: object) -> Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


WOQ = Foreign(
    "zentorch",
    "zentorch_woq_linear",
    ("input", "weight", "weight_scales", "weight_zero_points", "bias"),
    "(Tensor input, Tensor weight, Tensor weight_scales, Tensor? weight_zero_points, Tensor? bias) -> Tensor",
    _woq_fake,
)
QLINEAR = Foreign(
    "zentorch",
    "zentorch_dynamic_qlinear",
    ("input", "weight", "weight_scales", "bias", "is_weight_prepacked"),
    "(Tensor input, Tensor weight, Tensor weight_scales, Tensor? bias, *, bool is_weight_prepacked=False) -> Tensor",
    _qlinear_fake,
)


def _same_shape(weight: Tensor, *_: object, **__: object) -> Tensor:
    return torch.empty_like(weight)


PREPACK = Foreign("zentorch", "zentorch_weight_prepack_for_dynamic_qlinear", ("weight",), "(Tensor weight) -> Tensor", _same_shape)
REPACK = Foreign("zentorch", "zentorch_woq_repack_weight", ("unpacked_weight",), "(Tensor unpacked_weight) -> Tensor", nibbles)
