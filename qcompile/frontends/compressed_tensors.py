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

from qcompile.activations import ActivationQuant
from qcompile.errors import ALREADY_DENSE_WARNING, OFFLOADED_WARNING, LostWeightError, UnsupportedSchemeError, WeightError
from qcompile.float_rounding import FLOAT_KINDS
from qcompile.formats.layouts import MX_BLOCK, NVFP4_BLOCK
from qcompile.frontends import float_schemes, notes
from qcompile.frontends.float_schemes import float_activation, is_float8
from qcompile.frontends.float_schemes import structure_of as float8_structure
from qcompile.frontends.linear import FRONT_DOOR_CLASSES, ByteLinear, PackedLinear, become
from qcompile.frontends.stored_checks import Checks, enum_text
from qcompile.frontends.zero_points import restored_zero_point
from qcompile.operators import Structure

KNOWN_SCHEMES = (
    "pack-quantized integers of 2 to 8 bits (group, channel or tensor)",
    "int-quantized integers (group, channel or tensor)",
    "nvfp4-pack-quantized and mxfp4-pack-quantized weights",
    float_schemes.KNOWN,
    "int8 activations, dynamic per token or static per tensor",
    "FP8 activations, dynamic per token or in groups of 128, or static per tensor; NVFP4, MXFP4 and MXFP8 activations",
)
WAY_OUT = (
    "Load it dense with from_pretrained(..., quantization_config=CompressedTensorsConfig(dequantize=True)), or leave these layers "
    "out of the quantization."
)
# Where the scheme rounds activations.
OTHER_NUMBERS = " A dense model does not round the activations as this scheme does: its numbers are others."
OFFLOADED = "accelerate has wrapped its forward for offloading: left as it is"
NO_LINEAR = "quantized, but no Linear: decompressed to dense"


@dataclass(frozen=True)
class Plan:
    """What becomes of one module. zero_point: what its zero points are, if not what it holds; dropped: tensors that say nothing."""

    path: str
    module: nn.Module
    kind: type[PackedLinear] | type[ByteLinear]
    structure: Structure
    zero_point: Tensor | None = None
    dropped: tuple[str, ...] = ()


def prepare(model: nn.Module, strict: bool = False) -> None:
    """Give every compressed Linear of `model` its traceable forward and remove the hook that would decompress them.

    A layer whose scheme is not known, or whose tensors contradict it, is decompressed by the library alone, and its note says why.
    strict: contradictory tensors raise WeightError instead, before anything is changed. Zero points that loading lost always raise
    (LostWeightError), because nothing can be done right with them. Warns if the layers are dense already.
    """
    held: list[tuple[str, Any]] = [(path, module) for path, module in model.named_modules() if _weights(module) is not None]
    held = [(path, module) for path, module in held if not isinstance(module, FRONT_DOOR_CLASSES)]
    held = [(path, module) for path, module in held if notes.DECLINED not in module.__dict__]
    dense = [path for path, module in held if _status(module) == "decompressed"]
    packed = [(path, module) for path, module in held if _status(module) == "compressed"]
    wrapped = [path for path, module in packed if hasattr(module, "_hf_hook")]
    if dense:
        warnings.warn(ALREADY_DENSE_WARNING.format(count=len(dense), example=dense[0]), stacklevel=3)
    if wrapped:
        warnings.warn(OFFLOADED_WARNING.format(count=len(wrapped), example=wrapped[0]), stacklevel=3)
    for path, module in packed:
        if path in wrapped:
            notes.decline(module, notes.Declined(OFFLOADED, _form(module), *_sizes(module)))
    packed = [(path, module) for path, module in packed if path not in wrapped]
    if dense or not packed:
        return
    plans, others = _planned(model, packed, strict)
    still_packed = [module for module, why in others if not _made_dense(module, why)]
    for each in plans:
        _apply(each)
    if not still_packed and not wrapped:
        _remove_hooks(model)


def _planned(model: nn.Module, packed: list[tuple[str, Any]], strict: bool) -> tuple[list[Plan], list[tuple[Any, str]]]:
    """(plans, modules that get none with the reason)"""
    plans: list[Plan] = []
    others: list[tuple[Any, str]] = []
    for path, module in packed:
        if not _is_linear(module):
            others.append((module, NO_LINEAR))
            continue
        try:
            plans.append(plan(path, module, model))
        except UnsupportedSchemeError as error:
            others.append((module, f"scheme {error.scheme} is not supported"))
        except WeightError as error:
            if strict or isinstance(error, LostWeightError):
                raise
            others.append((module, str(error)))
    return plans, others


def _made_dense(module: Any, why: str) -> bool:
    """Have the library decompress one layer, and note it; False if the library cannot, which leaves the layer as it was."""
    scheme, form = module.__dict__["quantization_scheme"], _form(module)
    n, k = _sizes(module)
    try:
        import_module("compressed_tensors.compressors").decompress_module(module)
    except Exception as error:  # whatever the library says about a layer that it made itself
        failed = f"left as it was, because compressed-tensors cannot decompress it ({type(error).__name__}: {error})"
        notes.decline(module, notes.Declined(f"{why}; {failed}"[:400], form, n, k))
        return False
    if scheme.input_activations is None and scheme.output_activations is None:
        module.__dict__.pop("forward", None)  # a wrapper that has nothing to do any more
    text = why if why == NO_LINEAR else f"{why}; made dense by compressed-tensors"
    notes.decline(module, notes.Declined(text, form, n, k))
    return True


def _remove_hooks(model: nn.Module) -> None:
    for module in model.modules():
        hook = module.__dict__.get("ct_decompress_hook")
        if hook is not None:
            hook.remove()
            del module.ct_decompress_hook


def _apply(plan: Plan) -> None:
    module: Any = plan.module
    if plan.zero_point is not None:
        module.weight_zero_point = nn.Parameter(plan.zero_point, requires_grad=False)
    for name in plan.dropped:
        delattr(module, name)
    become(module, plan.kind, plan.structure, plan.path)
    # Under its own name the library would decompress the module again, from a parent's hook.
    module.qcompile_scheme = module.__dict__.pop("quantization_scheme")


def _weights(module: nn.Module) -> Any:
    return getattr(module.__dict__.get("quantization_scheme"), "weights", None)


def _form(module: nn.Module) -> str:
    return f"compressed-tensors {enum_text(module.__dict__['quantization_scheme'].format)}"


def _sizes(module: Any) -> tuple[int, int]:
    """[N, K], 0 where that is not known."""
    return int(getattr(module, "out_features", 0)), int(getattr(module, "in_features", 0))


def _status(module: nn.Module) -> str:
    return enum_text(module.__dict__.get("quantization_status"))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def plan(path: str, module: Any, model: nn.Module) -> Plan:
    """What `module` becomes; its tensors may be on the meta device, and then only their shapes and dtypes are looked at.

    Raises UnsupportedSchemeError for a scheme that is not known, WeightError for tensors that contradict it.
    """
    scheme = module.__dict__["quantization_scheme"]
    weights, form = scheme.weights, enum_text(scheme.format)
    activation = _activation(path, scheme)
    n, k = int(module.out_features), int(module.in_features)
    checks = Checks(path, n, k, {**module._parameters, **module._buffers})
    _check_static_scale(checks, activation)
    if form == "nvfp4-pack-quantized" and weights.group_size == NVFP4_BLOCK:
        checks.divides(NVFP4_BLOCK)
        checks.tensor("weight_packed", torch.uint8, (n, k // 2))
        checks.tensor("weight_scale", torch.float8_e4m3fn, (n, k // NVFP4_BLOCK))
        checks.tensor("weight_global_scale", None, (1,))
        checks.finite("weight_scale")
        checks.finite("weight_global_scale", positive=True)
        return Plan(path, module, PackedLinear, Structure("nvfp4", 4, NVFP4_BLOCK, n, k, activation))
    if form == "mxfp4-pack-quantized" and weights.group_size == MX_BLOCK:
        checks.divides(MX_BLOCK)
        checks.tensor("weight_packed", torch.uint8, (n, k // 2))
        checks.tensor("weight_scale", torch.uint8, (n, k // MX_BLOCK))
        checks.exponents("weight_scale")
        return Plan(path, module, PackedLinear, Structure("mxfp4", 4, MX_BLOCK, n, k, activation))
    if is_float8(form, weights):
        structure = float8_structure(checks, form, weights, activation)
        if structure is not None:
            return Plan(path, module, ByteLinear, structure)
    strategy = enum_text(weights.strategy)
    integer = enum_text(weights.type) == "int" and 2 <= weights.num_bits <= 8 and strategy in {"group", "channel", "tensor"}
    if not integer or form not in {"pack-quantized", "int-quantized", "naive-quantized"}:
        raise _unsupported(path, scheme)
    bits, group = int(weights.num_bits), int(weights.group_size) if strategy == "group" else k
    checks.divides(group)
    grid = (1,) if strategy == "tensor" else (n, k // group)
    checks.tensor("weight_scale", None, grid)
    checks.finite("weight_scale")
    dropped = checks.unordered(group)
    if weights.symmetric and checks.all_zero("weight_zero_point"):
        dropped = (*dropped, "weight_zero_point")
    if form == "pack-quantized":
        checks.tensor("weight_packed", torch.int32, (n, math.ceil(k * bits / 32)))
        checks.same_shape()
        layout, point = "ct_pack", None
        if not weights.symmetric:
            layout, point = _packed_zero_point(checks, strategy, bits, grid, model)
        return Plan(path, module, PackedLinear, Structure(layout, bits, group, n, k, activation), point, dropped)
    checks.tensor("weight", torch.int8, (n, k))
    checks.codes("weight", bits)
    if not weights.symmetric:
        checks.tensor("weight_zero_point", torch.int8, grid)
        checks.codes("weight_zero_point", bits)
    return Plan(path, module, ByteLinear, Structure("ct_int8", bits, group, n, k, activation), None, dropped)


def parts_of(scheme: Any) -> tuple[set[str], set[str]]:
    """The tensors that a file must hold for one layer of a known scheme, and those that it may hold."""
    form, weights, inputs = enum_text(scheme.format), scheme.weights, scheme.input_activations
    if form == "nvfp4-pack-quantized":
        needed = {"input_global_scale"} if inputs is not None else set[str]()
        return {"weight_packed", "weight_scale", "weight_global_scale", *needed}, {"input_global_scale"}
    static = {"input_scale"} if inputs is not None and inputs.dynamic is False else set[str]()
    if form == "mxfp4-pack-quantized":
        return {"weight_packed", "weight_scale", *static}, set()
    if is_float8(form, weights):
        return {"weight", "weight_scale", *static}, set()
    must = {"weight_packed", "weight_scale", "weight_shape"} if form == "pack-quantized" else {"weight", "weight_scale"}
    may = {"weight_g_idx", "weight_zero_point"}
    if not weights.symmetric:
        must.add("weight_zero_point")
    if inputs is not None and inputs.dynamic is False:
        must.add("input_scale")
        (may if inputs.symmetric else must).add("input_zero_point")
    return must, may


def _packed_zero_point(
    checks: Checks, strategy: str, bits: int, grid: tuple[int, ...], model: nn.Module
) -> tuple[str, Tensor | None]:
    """The layout that the zero points ask for, and the file's zero points where loading lost them."""
    found = checks.tensors.get("weight_zero_point")
    if strategy == "tensor":
        checks.tensor("weight_zero_point", torch.int8, grid)
        checks.codes("weight_zero_point", bits)
        return "ct_pack_plain_zeros", None
    packed = (math.ceil(checks.n * bits / 32), grid[1])
    if found is not None and found.dtype == torch.int8 and tuple(found.shape) == grid:
        return "ct_pack", restored_zero_point(model, checks.path, packed)
    checks.tensor("weight_zero_point", torch.int32, packed)
    return "ct_pack", None


def _activation(path: str, scheme: Any) -> str:
    """The spec of activations.ActivationQuant for the scheme's inputs; arithmetic as the library does it, in the input's dtype."""
    if scheme.output_activations is not None:
        raise _unsupported(path, scheme)
    args = scheme.input_activations
    if args is None:
        return "none"
    if enum_text(args.type) == "float" and args.symmetric:
        kind = float_activation(args, int(getattr(scheme.weights, "num_bits", 0)))
        if kind is not None:
            return f"{kind}@input"
    if enum_text(args.type) == "int" and args.num_bits == 8:
        if args.dynamic is True and enum_text(args.strategy) == "token":
            return "token/127.5/-128@input" if args.symmetric else "token_asymmetric@input"
        if args.dynamic is False and enum_text(args.strategy) == "tensor":
            return "tensor@input"
    raise _unsupported(path, scheme)


def _check_static_scale(checks: Checks, activation: str) -> None:
    quant = ActivationQuant.parse(activation)
    if quant.kind == "nvfp4":
        checks.tensor("input_global_scale", torch.float32, (1,))
        checks.finite("input_global_scale", positive=True)
    elif quant.is_static:
        checks.tensor("input_scale", None, (1,))
        checks.finite("input_scale")
    if quant.to_floats and FLOAT_KINDS[quant.kind].group:
        checks.divides(FLOAT_KINDS[quant.kind].group)
    if quant.kind == "tensor" and checks.tensors.get("input_zero_point") is not None:
        checks.tensor("input_zero_point", torch.int8, (1,))


def _unsupported(path: str, scheme: Any) -> UnsupportedSchemeError:
    parts = [enum_text(scheme.format)]
    for what in ("weights", "input_activations", "output_activations"):
        args = getattr(scheme, what)
        if args is not None:
            kind = f"{what} {enum_text(args.type)}{args.num_bits} {enum_text(args.strategy)}"
            parts.append(f"{kind} dynamic={enum_text(args.dynamic)}" if what != "weights" else kind)
    way_out = WAY_OUT if scheme.input_activations is None else WAY_OUT + OTHER_NUMBERS
    return UnsupportedSchemeError(path, f"({', '.join(parts)})", KNOWN_SCHEMES, way_out)
