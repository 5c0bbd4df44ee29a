"""Quantizes a float transformers model with compressed-tensors itself and saves it as a checkpoint folder."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.errors import OptionError
from qcompile.float_rounding import FLOAT_KINDS
from qcompile.frontends.stored_checks import enum_text

ACTIVATIONS = ("none", "dynamic", "static")
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized")
# Formats that have presets of their own: of weights alone, and with dynamic activations.
PRESETS = {
    "nvfp4-pack-quantized": ("NVFP4A16", "NVFP4"),
    "mxfp4-pack-quantized": ("MXFP4A16", "MXFP4"),
    "mxfp8-quantized": ("MXFP8A16", "MXFP8"),
}


def quantize(
    model: Any,
    folder: str | Path,
    *,
    bits: int = 4,
    group: int | None = 128,
    symmetric: bool = True,
    activations: str = "none",
    symmetric_activations: bool = True,
    format: str | None = None,
    block: tuple[int, int] | None = None,
    ignore: Sequence[str] = ("lm_head",),
    samples: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Round every nn.Linear of `model` to nearest, save the folder as compressed-tensors does, and return its path.

    The model is consumed: afterwards it holds the compressed tensors (copy it first if the float model is still needed).

    bits, group, symmetric  of the weights; group None: one scale per output channel
    activations  "none", "dynamic" (int8 per token) or "static" (int8, one scale for the tensor, measured on `samples`); with the
             formats of floats to floats: "dynamic" means NVFP4, MXFP4 and MXFP8 as the weights, or FP8 per token, in groups of 128
             with `block`; "static" FP8 with one scale
    format   "pack-quantized" (the default without activations), "int-quantized" (the default with them; 8 bits), or
             "nvfp4-pack-quantized" and "mxfp4-pack-quantized" (FP4 weights in blocks of 16 and 32), "mxfp8-quantized" (FP8 in
             blocks of 32), "float-quantized" (FP8); bits, group and symmetric do not apply to these
    block    outputs and values of K that share a scale in "float-quantized", as (128, 128); None: one scale per output channel
    ignore   names of modules to leave in floating point, "re:" begins a regular expression
    samples  keyword arguments of calls of the model; needed for static activations, and for NVFP4's with their static global scale

    Raises OptionError for values outside these sets. Needs transformers and compressed-tensors.
    """
    compressors, quantization = _library("compressors"), _library("quantization")
    if activations not in ACTIVATIONS:
        raise OptionError("activations", activations, f"one of {', '.join(ACTIVATIONS)}")
    if format is None:
        format = "pack-quantized" if activations == "none" else "int-quantized"
    if format not in FORMATS:
        raise OptionError("format", format, f"one of {', '.join(FORMATS)}")
    if format == "int-quantized" and bits != 8:
        raise OptionError("bits", bits, "8, because int-quantized stores one byte per weight")
    if activations == "static" and format in PRESETS:
        raise OptionError("activations", activations, f"'none' or 'dynamic' with format {format!r}")
    measured = activations == "static" or (activations == "dynamic" and format == "nvfp4-pack-quantized")
    if measured and not samples:
        raise OptionError("samples", samples, "at least one call's keyword arguments, to measure activations")
    if block is not None and (format != "float-quantized" or min(block) < 1):
        raise OptionError("block", block, 'two positive sizes, with format "float-quantized"')
    if format == "float-quantized":
        scheme = _float8_scheme(block, activations)
    else:
        scheme = _scheme(bits, group, symmetric, activations, symmetric_activations, format)
    config = quantization.QuantizationConfig(config_groups={"group_0": scheme}, ignore=list(ignore))
    quantization.apply_quantization_config(model, config, show_progress=False)
    linears: dict[str, Any] = {
        name: module for name, module in model.named_modules() if getattr(module, "quantization_scheme", None) is not None
    }
    ranges = _input_ranges(model, linears, samples) if measured else {}
    with torch.no_grad():
        for name, module in linears.items():
            _set_weight_parameters(module)
            if name in ranges:
                _set_input_parameters(module, *ranges[name])
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    path = Path(folder)
    model.save_pretrained(path)
    compressor.update_config(str(path))
    return path


def _library(part: str) -> Any:
    return import_module(f"compressed_tensors.{part}")


def _scheme(bits: int, group: int | None, symmetric: bool, activations: str, symmetric_activations: bool, form: str) -> Any:
    library = _library("quantization")
    if form in PRESETS:
        scheme = library.preset_name_to_scheme(PRESETS[form][activations == "dynamic"], ["Linear"])
        scheme.format = form
        return scheme
    strategy = "channel" if group is None else "group"
    weights = library.QuantizationArgs(num_bits=bits, strategy=strategy, group_size=group, symmetric=symmetric)
    inputs = None
    if activations == "dynamic":
        inputs = library.QuantizationArgs(num_bits=8, strategy="token", dynamic=True, symmetric=symmetric_activations)
    elif activations == "static":
        inputs = library.QuantizationArgs(num_bits=8, strategy="tensor", dynamic=False, symmetric=symmetric_activations)
    return library.QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs, format=form)


def _float8_scheme(block: tuple[int, int] | None, activations: str) -> Any:
    library = _library("quantization")
    shared = {"strategy": "channel"} if block is None else {"strategy": "block", "block_structure": list(block)}
    weights = library.QuantizationArgs(num_bits=8, type="float", symmetric=True, **shared)
    kinds: dict[str, dict[str, Any]] = {
        "static": {"strategy": "tensor", "dynamic": False},
        "dynamic": {"strategy": "token", "dynamic": True}
        if block is None
        else {"strategy": "group", "group_size": FLOAT_KINDS["fp8_group"].group, "dynamic": True},
    }
    kind = kinds.get(activations)
    inputs = None if kind is None else library.QuantizationArgs(num_bits=8, type="float", symmetric=True, **kind)
    return library.QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs, format="float-quantized")


def _ranges(weight: Tensor, args: Any) -> tuple[Tensor, Tensor]:
    """Least and largest weight of everything that shares a scale, in the shape of the scales."""
    n, k = weight.shape
    if enum_text(args.strategy) == "tensor":
        return weight.amin().reshape(1), weight.amax().reshape(1)
    if args.block_structure is not None:
        rows, columns = args.block_structure
        padded = nn.functional.pad(weight, (0, -k % columns, 0, -n % rows))
        blocks = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    size = k if args.group_size is None else args.group_size
    grouped = weight.reshape(n, k // size, size)
    return grouped.amin(-1), grouped.amax(-1)


def _set_weight_parameters(module: Any) -> None:
    """weight_scale (and zero point, global scale) from the least and largest weight of each group."""
    utils = _library("quantization.utils")
    args = module.quantization_scheme.weights
    least, most = _ranges(module.weight.detach(), args)
    overall = None
    if hasattr(module, "weight_global_scale"):
        overall = utils.generate_gparam(least.min(), most.max())
        module.weight_global_scale.copy_(overall)
    scale, zero = utils.calculate_qparams(least, most, args, global_scale=overall)
    module.weight_scale.copy_(scale)
    if not args.symmetric:
        module.weight_zero_point.copy_(zero)


def _set_input_parameters(module: Any, least: Tensor, most: Tensor) -> None:
    utils = _library("quantization.utils")
    args = module.quantization_scheme.input_activations
    if hasattr(module, "input_global_scale"):
        module.input_global_scale.copy_(utils.generate_gparam(least, most))
        return
    scale, zero = utils.calculate_qparams(least, most, args)
    module.input_scale.copy_(scale)
    if not args.symmetric:
        module.input_zero_point.copy_(zero)


def _input_ranges(model: Any, linears: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Least and largest input of every Linear over the float model's runs on `samples`."""
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            least, most = torch.aminmax(inputs[0])
            if name in ranges:
                least, most = torch.minimum(least, ranges[name][0]), torch.maximum(most, ranges[name][1])
            ranges[name] = (least, most)

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    for module in linears.values():
        module.quantization_enabled = False
    with torch.no_grad():
        for sample in samples:
            model(**sample)
    for module in linears.values():
        del module.quantization_enabled
    for handle in handles:
        handle.remove()
    return ranges
