"""Linear layers that keep their packed tensors and dequantize them in their forward, in one traceable call without graph breaks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.errors import ReleasedWeightError
from qcompile.formats.layouts import LAYOUTS
from qcompile.graph.nodes import is_released
from qcompile.operators import NAME_ATTRIBUTE, Structure, dense_weight, fake_quantize, packed_linear


def _product(
    x: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    spec: str,
    bias: Tensor | None,
    input_scale: Tensor | None = None,
    input_zero: Tensor | None = None,
) -> Tensor:
    """y = act(x) @ W.T + bias; x [..., K] -> [..., N] in the dtype of x."""
    if not spec.endswith("none"):
        x = fake_quantize(x, input_scale, input_zero, spec.rsplit(maxsplit=1)[-1])
    y: Tensor = packed_linear(x, *tensors, bias, spec)
    return y


class FrontDoorLinear(nn.Linear):
    """What all have in common: once their tensors are released, whatever would read them raises instead of crashing the process."""

    structure: Structure
    spec: str

    @property
    def use_a16(self) -> bool:
        """Whether activations stay as they are: those of NVFP4A16, say, but not of NVFP4, which rounds them to 4 bits."""
        return self.structure.activation == "none"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrontDoorLinear":
        """As nn.Module: what .to(), .half() and so on are made of. A change that changes nothing is still none."""
        for name, tensor in self._released():
            probe = tensor.new_empty(0)
            if fn(probe) is not probe:
                raise ReleasedWeightError(name)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._need_all()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __reduce_ex__(self, protocol: Any) -> Any:  # copying and pickling
        self._need_all()
        return super().__reduce_ex__(protocol)

    def extra_repr(self) -> str:
        layout, bits, group, n, k, activation, _ = self.structure
        bias = self._parameters.get("bias") is not None
        text = f"in_features={k}, out_features={n}, bias={bias}, layout={layout}, bits={bits}, group={group}"
        return text if activation == "none" else f"{text}, activation={activation}"

    def _released(self) -> list[tuple[str, Tensor]]:
        tensors = (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False))
        return [(getattr(tensor, NAME_ATTRIBUTE, name), tensor) for name, tensor in tensors if is_released(tensor)]

    def _need_all(self) -> None:
        for name, _ in self._released():
            raise ReleasedWeightError(name)


class PackedLinear(FrontDoorLinear):
    """compressed-tensors' packed layers of integers, NVFP4 and MXFP4: weight_packed, weight_scale, weight_zero_point and so on."""

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    weight_global_scale: Tensor | None
    weight_g_idx: Tensor | None
    input_scale: Tensor | None
    input_global_scale: Tensor | None
    input_zero_point: Tensor | None
    OPTIONAL = ("weight_zero_point", "weight_global_scale", "weight_g_idx", "input_scale", "input_global_scale", "input_zero_point")

    def forward(self, input: Tensor) -> Tensor:
        # Written out without helpers, because Dynamo traces this for every layer of a model.
        spec = self.spec
        if not spec.endswith("none"):
            scale = self.input_scale if self.input_global_scale is None else self.input_global_scale
            input = fake_quantize(input, scale, self.input_zero_point, spec.split()[-1])
        zeros = self.weight_global_scale if spec.startswith("nvfp4") else self.weight_zero_point
        y: Tensor = packed_linear(input, self.weight_packed, self.weight_scale, zeros, self.weight_g_idx, self.bias, spec)
        return y

    def stored(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        zeros = self.weight_global_scale if self.structure.layout == "nvfp4" else self.weight_zero_point
        return self.weight_packed, self.weight_scale, zeros, self.weight_g_idx

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dense weight, dequantized anew on every access: for model code that asks for its dtype or values."""
        dtype = torch.bfloat16 if LAYOUTS[self.structure.layout].codebook else self.weight_scale.dtype
        return dense_weight(self.structure, *self.stored(), dtype)


class ByteLinear(FrontDoorLinear):
    """compressed-tensors' int- and float-quantized layers: `weight` is int8 or float8 [N, K], with weight_scale and so on."""

    weight_scale: Tensor
    weight_zero_point: Tensor | None
    weight_g_idx: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    OPTIONAL = ("weight_zero_point", "weight_g_idx", "input_scale", "input_zero_point")

    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.stored(), self.spec, self.bias, self.input_scale, self.input_zero_point)

    def stored(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.weight, self.weight_scale, self.weight_zero_point, self.weight_g_idx


class GroupedLinear(FrontDoorLinear):
    """GPTQ and AWQ layers: qweight, scales, and where they mean something qzeros and g_idx.

    used: whether qzeros and g_idx take part; both are kept for the state dict even where the data show that they say nothing
    (symmetric zero points, columns in order).
    """

    used: tuple[bool, bool]
    qweight: Tensor
    scales: Tensor
    qzeros: Tensor | None
    g_idx: Tensor | None
    OPTIONAL = ("qzeros", "g_idx")

    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.stored(), self.spec, self.bias)

    def stored(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        zeros, order = self.used
        return self.qweight, self.scales, self.qzeros if zeros else None, self.g_idx if order else None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dense weight, dequantized anew on every access."""
        return dense_weight(self.structure, *self.stored(), self.scales.dtype)


FRONT_DOOR_CLASSES = (PackedLinear, ByteLinear, GroupedLinear)


def become(module: Any, kind: type[PackedLinear] | type[ByteLinear] | type[GroupedLinear], structure: Structure, path: str) -> None:
    """Turn `module` into `kind`, keeping its parameters under their names; `path` is what errors call them."""
    module.__dict__.pop("forward", None)
    module.__class__ = kind
    module.in_features, module.out_features = structure.k, structure.n
    module.structure = structure
    module.spec = structure.spec  # what forward reads
    for name in (*kind.OPTIONAL, "bias"):
        plain = module.__dict__.pop(name, None)
        if isinstance(plain, Tensor):
            module.register_buffer(name, plain, persistent=False)
        elif name not in module._parameters and name not in module._buffers:
            module.register_parameter(name, None)
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        setattr(tensor, NAME_ATTRIBUTE, f"{path}.{name}" if path else name)
