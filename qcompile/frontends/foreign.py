"""Layers of schemes that no front door reads are loaded through compressed-tensors itself, which makes them dense.

Only such layers need that library; everything else loads without it.
"""

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from qcompile.errors import CONFIG_WAY_OUT, CheckpointError, UnsupportedSchemeError, WeightError
from qcompile.frontends.completeness import Stored
from qcompile.frontends.compressed_tensors import KNOWN_SCHEMES
from qcompile.frontends.other_layers import SHAPE

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


def sizes(module: Any) -> tuple[int, int]:
    """[N, K] of a layer's weight, an embedding's table say; of more dimensions the last ones count as one."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    shape = module.__dict__.get(SHAPE) or module.weight.shape
    return int(shape[0]), math.prod(shape[1:])


def need_parts(path: str, n: int, k: int, parts: Stored, scheme: Any) -> None:
    """WeightError unless the scales are there that the scheme has, those of the weight in its shape."""
    weights = scheme.weights
    found, group = parts.get("weight_scale"), int(weights.group_size or 0)
    rows, columns = weights.block_structure or (1, 1)
    grids: dict[str, tuple[tuple[int, ...], ...]] = {
        "tensor": ((1,), ()),
        "channel": ((n, 1), (n,)),
        "group": ((n, -(-k // max(group, 1))),),
        "tensor_group": ((n, -(-k // max(group, 1))),),
        "block": ((-(-n // rows), -(-k // columns)),),
    }
    shapes = grids.get(str(weights.strategy), ())
    if found is None or found.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes) or "a tensor"
        raise WeightError(f"{path}.weight_scale", f"{expected}, as the scheme has", str(found or "nothing"))
    for part, given in (("input", scheme.input_activations), ("output", scheme.output_activations)):
        if given is None or given.dynamic is True:
            continue
        name = f"{part}_global_scale" if given.dynamic else f"{part}_scale"
        if name not in parts:
            raise WeightError(f"{path}.{name}", "a tensor of that name, which the scheme has", "nothing")


def settle(module: Any, path: str, dtype: torch.dtype) -> None:
    """After the library made the layer dense: its weight in the model's dtype. UnsupportedSchemeError if it could not, or if it
    cannot run the layer.
    """
    weight = module._parameters.get("weight")
    shape = sizes(module)
    if weight is None or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2 or tuple(weight.shape) != shape:
        raise _cannot(path, f"it gives {'nothing' if weight is None else f'{weight.dtype} {list(weight.shape)}'}")
    module.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    try:
        with torch.no_grad():
            if isinstance(module, nn.Linear):
                module(torch.zeros(1, shape[1], dtype=dtype, device=weight.device))
            elif isinstance(module, nn.Embedding):
                module(torch.zeros(1, dtype=torch.int64, device=weight.device))
    except Exception as error:  # whatever the library says about a layer that it made itself
        raise _cannot(path, f"{type(error).__name__}: {error}"[:200]) from error


def _cannot(path: str, why: str) -> UnsupportedSchemeError:
    known = ["schemes that compressed-tensors decompresses"]
    return UnsupportedSchemeError(path, f"that compressed-tensors cannot decompress ({why})", known, "Load it without this layer.")
