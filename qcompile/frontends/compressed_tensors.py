"""Layers that transformers + compressed-tensors hold compressed become layers that dequantize in their own forward.

compressed-tensors 0.15 to 0.20 keep `weight_packed` and so on in plain nn.Linear modules until the first forward; then a hook on
the model (`ct_decompress_hook`) makes every weight dense, and from 0.19 its offload wrappers break the graph at every Linear. So
`prepare` must come before the first forward. Nothing of the library is imported here unless a quantized module is no Linear.
"""

import math
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.errors import ALREADY_DENSE_WARNING, OFFLOADED_WARNING, UnsupportedSchemeError, WeightError
from qcompile.frontends.linear import FRONT_DOOR_CLASSES, ByteLinear, PackedLinear, become
from qcompile.frontends.product import Structure
from qcompile.frontends.zero_points import restored_zero_point
from qcompile.readers.layouts import NVFP4_BLOCK

KNOWN_SCHEMES = (
    "pack-quantized integers of 2 to 8 bits (group, channel or tensor)",
    "int-quantized integers (group, channel or tensor)",
    "nvfp4-pack-quantized weights without activation quantization",
    "int8 activations, dynamic per token or static per tensor",
)
WAY_OUT = (
    "Load it dense with from_pretrained(..., quantization_config=CompressedTensorsConfig(dequantize=True)), or leave these layers "
    "out of the quantization."
)


@dataclass(frozen=True)
class Plan:
    """What becomes of one module."""

    path: str
    module: nn.Module
    kind: type[PackedLinear] | type[ByteLinear]
    structure: Structure
    zero_point: Tensor | None = None


def prepare(model: nn.Module) -> None:
    """Give every compressed Linear of `model` its traceable forward and remove the hook that would decompress them.

    Nothing is changed if anything raises: UnsupportedSchemeError for a scheme that is not known, WeightError for tensors that
    contradict the scheme. Warns if the layers are dense already.
    """
    held: list[tuple[str, Any]] = [(path, module) for path, module in model.named_modules() if _weights(module) is not None]
    held = [(path, module) for path, module in held if not isinstance(module, FRONT_DOOR_CLASSES)]
    dense = [path for path, module in held if _status(module) == "decompressed"]
    packed = [(path, module) for path, module in held if _status(module) == "compressed"]
    wrapped = [path for path, module in packed if hasattr(module, "_hf_hook")]
    if dense:
        warnings.warn(ALREADY_DENSE_WARNING.format(count=len(dense), example=dense[0]), stacklevel=3)
    if wrapped:
        warnings.warn(OFFLOADED_WARNING.format(count=len(wrapped), example=wrapped[0]), stacklevel=3)
    if dense or wrapped or not packed:
        return
    linears = [(path, module) for path, module in packed if _is_linear(module)]
    plans = [_plan(path, module, model) for path, module in linears]
    planned = {plan.path for plan in plans}
    for path, module in packed:
        if path not in planned:
            import_module("compressed_tensors.compressors").decompress_module(module)
            module.__dict__.pop("forward", None)
            module.qcompile_note = "quantized, but no Linear: decompressed to dense"
    for plan in plans:
        _apply(plan)
    for module in model.modules():
        hook = module.__dict__.get("ct_decompress_hook")
        if hook is not None:
            hook.remove()
            del module.ct_decompress_hook


def _apply(plan: Plan) -> None:
    module: Any = plan.module
    if plan.zero_point is not None:
        module.weight_zero_point = nn.Parameter(plan.zero_point, requires_grad=False)
    become(module, plan.kind, plan.structure, plan.path)
    # Under its own name the library would decompress the module again, from a parent's hook.
    module.qcompile_scheme = module.__dict__.pop("quantization_scheme")


def _weights(module: nn.Module) -> Any:
    return getattr(module.__dict__.get("quantization_scheme"), "weights", None)


def _status(module: nn.Module) -> str:
    status = module.__dict__.get("quantization_status")
    return str(getattr(status, "value", status))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _plan(path: str, module: Any, model: nn.Module) -> Plan:
    scheme = module.__dict__["quantization_scheme"]
    weights, form = scheme.weights, _text(scheme.format)
    activation = _activation(path, scheme)
    n, k = int(module.out_features), int(module.in_features)
    tensors: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    checks = _Checks(path, n, k, tensors)
    _check_static_scale(checks, activation)
    if form == "nvfp4-pack-quantized" and activation == "none" and weights.group_size == NVFP4_BLOCK:
        checks.divides(NVFP4_BLOCK)
        checks.tensor("weight_packed", torch.uint8, (n, k // 2))
        checks.tensor("weight_scale", torch.float8_e4m3fn, (n, k // NVFP4_BLOCK))
        checks.tensor("weight_global_scale", None, (1,))
        return Plan(path, module, PackedLinear, Structure("nvfp4", 4, NVFP4_BLOCK, n, k))
    strategy = _text(weights.strategy)
    integer = _text(weights.type) == "int" and 2 <= weights.num_bits <= 8 and strategy in {"group", "channel", "tensor"}
    if not integer or form not in {"pack-quantized", "int-quantized", "naive-quantized"}:
        raise _unsupported(path, scheme)
    bits, group = int(weights.num_bits), int(weights.group_size) if strategy == "group" else k
    checks.divides(group)
    grid = (1,) if strategy == "tensor" else (n, k // group)
    checks.tensor("weight_scale", None, grid)
    if tensors.get("weight_g_idx") is not None:
        checks.tensor("weight_g_idx", None, (k,))
    if form == "pack-quantized":
        checks.tensor("weight_packed", torch.int32, (n, math.ceil(k * bits / 32)))
        checks.same_shape()
        layout, point = "ct_pack", None
        if not weights.symmetric:
            layout, point = _packed_zero_point(checks, strategy, bits, grid, model)
        return Plan(path, module, PackedLinear, Structure(layout, bits, group, n, k, activation), point)
    checks.tensor("weight", torch.int8, (n, k))
    if not weights.symmetric:
        checks.tensor("weight_zero_point", torch.int8, grid)
    return Plan(path, module, ByteLinear, Structure("ct_int8", bits, group, n, k, activation))


def _packed_zero_point(
    checks: "_Checks", strategy: str, bits: int, grid: tuple[int, ...], model: nn.Module
) -> tuple[str, Tensor | None]:
    """The layout that the zero points ask for, and the file's zero points where loading lost them."""
    found = checks.tensors.get("weight_zero_point")
    if strategy == "tensor":
        checks.tensor("weight_zero_point", torch.int8, grid)
        return "ct_pack_plain_zeros", None
    packed = (math.ceil(checks.n * bits / 32), grid[1])
    if found is not None and found.dtype == torch.int8 and tuple(found.shape) == grid:
        return "ct_pack", restored_zero_point(model, checks.path, packed)
    checks.tensor("weight_zero_point", torch.int32, packed)
    return "ct_pack", None


def _activation(path: str, scheme: Any) -> str:
    """The spec of meaning.ActivationQuant for the scheme's inputs; arithmetic as the library does it, in the input's dtype."""
    if scheme.output_activations is not None:
        raise _unsupported(path, scheme)
    args = scheme.input_activations
    if args is None:
        return "none"
    if _text(args.type) == "int" and args.num_bits == 8:
        if args.dynamic is True and _text(args.strategy) == "token":
            return "token/127.5/-128@input" if args.symmetric else "token_asymmetric@input"
        if args.dynamic is False and _text(args.strategy) == "tensor":
            return "tensor@input"
    raise _unsupported(path, scheme)


def _check_static_scale(checks: "_Checks", activation: str) -> None:
    if activation.startswith("tensor"):
        checks.tensor("input_scale", None, (1,))
        if checks.tensors.get("input_zero_point") is not None:
            checks.tensor("input_zero_point", torch.int8, (1,))


def _unsupported(path: str, scheme: Any) -> UnsupportedSchemeError:
    parts = [_text(scheme.format)]
    for what in ("weights", "input_activations", "output_activations"):
        args = getattr(scheme, what)
        if args is not None:
            kind = f"{what} {_text(args.type)}{args.num_bits} {_text(args.strategy)}"
            parts.append(f"{kind} dynamic={_text(args.dynamic)}" if what != "weights" else kind)
    return UnsupportedSchemeError(path, f"({', '.join(parts)})", KNOWN_SCHEMES, WAY_OUT)


@dataclass(frozen=True)
class _Checks:
    """Compares one module's tensors with what its scheme says, before anything is changed."""

    path: str
    n: int
    k: int
    tensors: dict[str, Tensor | None]

    def tensor(self, name: str, dtype: torch.dtype | None, shape: tuple[int, ...]) -> None:
        found = self.tensors.get(name)
        wanted = f"{'a float' if dtype is None else dtype} tensor {list(shape)}"
        if found is None:
            raise WeightError(f"{self.path}.{name}", wanted, "nothing")
        if tuple(found.shape) != shape or (dtype is not None and found.dtype != dtype):
            raise WeightError(f"{self.path}.{name}", wanted, f"{found.dtype} {list(found.shape)}")

    def divides(self, group: int) -> None:
        if group <= 0 or self.k % group:
            raise WeightError(f"{self.path}: group size", f"a divisor of K={self.k}", str(group))

    def same_shape(self) -> None:
        found = self.tensors.get("weight_shape")
        if found is not None and found.device.type != "meta" and found.tolist() != [self.n, self.k]:
            raise WeightError(f"{self.path}.weight_shape", str([self.n, self.k]), str(found.tolist()))
