"""How the input of a linear is rounded before the product: the formula lives on this type."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompile.errors import WeightError
from qcompile.float_rounding import FLOAT_KINDS, rounded


@dataclass(frozen=True, slots=True)
class ActivationQuant:
    """How the layer's input x [..., K] is rounded before the product.

    none     x itself.
    token    dynamic, per token, symmetric int8: s = max|x| / divisor over K, q = round(clamp(x / s, low, 127)), x' = q * s.
             compressed-tensors uses divisor 127.5 and low -128; most kernels 127 and -127 (codes can differ by one).
    token_asymmetric  dynamic, per token: s = (max(x, 0) - min(x, 0)) / 255, z = round(clamp(-128 - min(x, 0) / s, -128, 127)),
             q = round(clamp(x / s + z, -128, 127)), x' = (q - z) * s.
    tensor   static, one scale s (and zero point z or 0) for the tensor: q = round(clamp(x / s + z, -128, 127)), x' = (q - z) * s.
    A token whose scale would be 0 keeps x' = 0. round() is to nearest, ties to even.
    nvfp4, mxfp4, mxfp8, fp8_token, fp8_group, fp8_tensor  to floats of 4 and 8 bits: qcompile.float_rounding. The static scale of
             nvfp4 is the global one of the tensor, a divisor.

    arithmetic  "float32": every step in float32, as kernels compute. "input": every step rounded to the dtype of x (and of s, for
             `tensor`), which is what compressed-tensors 0.20 does, bit by bit (tests/frontends/test_activations.py). In float32 the
             two are the same. Two facts of that library are not followed: for inputs that are not 3-D its "per token" scale is one
             for the whole 2-D matrix, or one for all trailing dimensions of a 4-D tensor.
    """

    kind: str = "none"
    divisor: float = 127.5
    low: int = -128
    arithmetic: str = "float32"

    @property
    def spec(self) -> str:
        """A short text that `parse` reads back; the form in which the canonical operator carries it."""
        kind = f"{self.kind}/{self.divisor:g}/{self.low}" if self.kind == "token" else self.kind
        return kind if self.arithmetic == "float32" else f"{kind}@{self.arithmetic}"

    @staticmethod
    def parse(spec: str) -> "ActivationQuant":
        text, _, arithmetic = spec.partition("@")
        arithmetic = arithmetic or "float32"
        kind, *rest = text.split("/")
        if not rest:
            return ActivationQuant(kind=kind, arithmetic=arithmetic)
        return ActivationQuant(kind=kind, divisor=float(rest[0]), low=int(rest[1]), arithmetic=arithmetic)

    @property
    def is_none(self) -> bool:
        return self.kind == "none"

    @property
    def to_floats(self) -> bool:
        """Whether x is rounded to floats of 4 or 8 bits, not to integers."""
        return self.kind in FLOAT_KINDS

    @property
    def is_static(self) -> bool:
        """Whether a constant of the checkpoint takes part (act_scale)."""
        return self.kind == "tensor" or (self.to_floats and FLOAT_KINDS[self.kind].static)

    def apply(self, x: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> Tensor:
        """x rounded as the class says, returned in the dtype of x. scale, zero: only for static kinds, one element each."""
        if self.kind == "none":
            return x
        if self.is_static and scale is None:
            raise WeightError("act_scale", "a static activation scale", "None")
        if self.to_floats:
            return rounded(x.to(torch.float32) if self.arithmetic == "float32" else x, self.kind, scale).to(x.dtype)
        codes, step, offset = self.codes(x, scale, zero)
        return ((codes if offset is None else codes - offset) * step).to(x.dtype)

    def codes(self, x: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(q, s, z or None) with x' = (q - z) * s: q like x with whole numbers in -128 .. 127, s and z [..., 1] or [1].

        For the kinds that round to integers; all in the dtype the arithmetic is done in.
        """
        wide = x.to(torch.float32) if self.arithmetic == "float32" else x
        offset: Tensor | None = None
        if self.kind == "token":
            step = wide.abs().amax(-1, keepdim=True) / self.divisor
        elif self.kind == "token_asymmetric":
            least, most = wide.amin(-1, keepdim=True).clamp(max=0.0), wide.amax(-1, keepdim=True).clamp(min=0.0)
            step = (most - least) / 255.0
            offset = torch.round((-128.0 - least / torch.where(step == 0, torch.ones_like(step), step)).clamp(-128, 127))
        else:
            assert scale is not None
            step = (scale.to(torch.float32) if self.arithmetic == "float32" else scale).reshape(1)
            offset = None if zero is None else zero.to(wide.dtype).reshape(1)
        step = torch.where(step == 0, torch.ones_like(step), step)
        low = self.low if self.kind == "token" else -128
        quotient = wide / step
        return torch.round((quotient if offset is None else quotient + offset).clamp(low, 127)), step, offset


NO_ACTIVATION_QUANT = ActivationQuant()
