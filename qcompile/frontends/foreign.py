"""Layers of schemes that no front door reads are loaded through compressed-tensors itself, which makes them dense.

Only such layers need that library; everything else loads without it.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from qcompile.errors import CONFIG_WAY_OUT, CheckpointError, UnsupportedSchemeError
from qcompile.frontends.compressed_tensors import KNOWN_SCHEMES

WAY_OUT = "Install compressed-tensors (pip install compressed-tensors), which makes such layers dense, or leave them out."


def library_scheme(folder: str, path: str, entry: Mapping[str, Any], group: Mapping[str, Any], why: str) -> Any:
    """The library's own object for a config group; UnsupportedSchemeError with `why` if the library is not installed."""
    try:
        quantization = import_module("compressed_tensors.quantization")
    except ImportError as error:
        raise UnsupportedSchemeError(path, why, KNOWN_SCHEMES, WAY_OUT) from error
    fields = ("targets", "weights", "input_activations", "output_activations")
    form = group.get("format") or entry.get("format")
    given = {name: group.get(name) for name in fields} | {"format": None if form == "mixed-precision" else form}
    try:
        return quantization.QuantizationScheme.model_validate(given)
    except Exception as error:  # what the library says about a scheme that it does not know either
        words = str(error).splitlines()
        got = f"one that compressed-tensors refuses ({'; '.join(words[:3])[:200]})"
        raise CheckpointError(f"{folder}/config.json", f"the config group of {path}", "a scheme", got, CONFIG_WAY_OUT) from error


def attach(module: nn.Module, scheme: Any) -> None:
    """Make a module whose stored tensors were read one that the library takes for its own."""
    quantization = import_module("compressed_tensors.quantization")
    holder: Any = module
    holder.quantization_scheme, holder.quantization_status = scheme, quantization.QuantizationStatus.COMPRESSED
    if scheme.input_activations is not None or scheme.output_activations is not None:
        import_module("compressed_tensors.quantization.lifecycle.forward").set_forward_quantized(module)


def settle(module: Any, path: str, dtype: torch.dtype) -> None:
    """After the library made the layer dense: its weight in the model's dtype. UnsupportedSchemeError if it could not."""
    weight = module._parameters.get("weight")
    if weight is None or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        known = ["schemes that compressed-tensors decompresses"]
        raise UnsupportedSchemeError(path, "that compressed-tensors cannot decompress", known, "Load the model without this layer.")
    module.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
