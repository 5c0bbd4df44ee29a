"""A tensor subclass for int8 weights, as torchao has for its weight-only configuration: linear multiplies codes and scales the result."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

aten = torch.ops.aten


class Int8Rows(Tensor):
    """W [N, K] = codes [N, K] of int8 times scale [N]; looks like a tensor of the scale's dtype."""

    codes: Tensor
    scale: Tensor

    def __new__(cls, codes: Tensor, scale: Tensor) -> "Int8Rows":
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype, device=codes.device)

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    @staticmethod
    def of(weight: Tensor) -> "Int8Rows":
        """The nearest one to a dense weight."""
        scale = weight.abs().amax(1) / 127
        return Int8Rows((weight / scale[:, None]).round().to(torch.int8), scale)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], _: None, size: Any, stride: Any) -> "Int8Rows":
        return Int8Rows(inner["codes"], inner["scale"])

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Int8Rows({list(self.shape)})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            return _linear(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func in (aten.detach.default, aten.alias.default, aten.clone.default):
            return Int8Rows(func(args[0].codes), func(args[0].scale))
        raise NotImplementedError(f"{func} of Int8Rows")


def _linear(x: Tensor, weight: Int8Rows, bias: Tensor | None = None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    product = torch.mm(rows, weight.codes.t().to(x.dtype)) * weight.scale
    result = product.reshape(*x.shape[:-1], product.shape[-1])
    return result if bias is None else result + bias


def quantize(model: nn.Module) -> nn.Module:
    """Give every linear of the model such a weight, in place, but for the head."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.weight = nn.Parameter(Int8Rows.of(module.weight.detach()), requires_grad=False)
    return model
