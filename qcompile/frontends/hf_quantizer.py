"""The piece that plugs into transformers' loading: it gives each quantized Linear the parameters that the files hold for it."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.quantizers import base as quantizers_base
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from qcompile.errors import UnsupportedSchemeError, WeightError
from qcompile.frontends import awq, compressed_tensors, gptq
from qcompile.frontends.checkpoint_schemes import scheme_of
from qcompile.frontends.experts import DequantizeMerged

METHOD = "qcompile"

# Names after the layer's own, in every format; `weight` only counts if it is stored as int8.
PARTS = (
    *("weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape", "weight_g_idx"),
    *("input_scale", "input_zero_point", "input_global_scale", "qweight", "qzeros", "scales", "g_idx"),
)
PACKED = ("weight_packed", "qweight")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


FRONT_DOORS = {"compressed-tensors": compressed_tensors.prepare, "gptq": gptq.prepare, "awq": awq.prepare}


class Config(QuantizationConfigMixin):
    """The checkpoint's own entry, handed through transformers."""

    def __init__(self, entry: dict[str, Any] | None = None, **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.entry = entry or {}


class LoadingLinear(nn.Linear):
    """A Linear without `weight` while its packed tensors are being read; a model's own initialisation may look at it."""

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        stand_in = torch.empty((self.out_features, self.in_features), device="meta")
        stand_in._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers then leaves it alone
        return stand_in


# Typed as Any: transformers annotates its abstract methods in ways that no subclass of its own satisfies.
Base: Any = quantizers_base.HfQuantizer


class Quantizer(Base):  # type: ignore[misc]
    """Before loading: parameters of the files' shapes and dtypes. Afterwards: the front door's forward."""

    requires_calibration = True
    serialized_names: dict[str, list[str]] = {"weight": ["weight", *PARTS]}  # noqa: RUF012 - transformers' own annotation

    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": DequantizeMerged}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        entry = entry_of(self)
        layers = stored_layers(model, kwargs.get("checkpoint_files") or ())
        for path, parts in layers.items():
            module = model.get_submodule(path)
            if not isinstance(module, nn.Linear):
                known = ["Linear layers"]
                raise UnsupportedSchemeError(path, f"a quantized {type(module).__name__}", known, "Quantize it without this layer.")
            _give_parameters(path, module, parts)
            if entry["quant_method"] == "compressed-tensors":
                module.quantization_scheme = scheme_of(entry, path)  # type: ignore[assignment]
                module.quantization_status = "compressed"  # type: ignore[assignment]
            else:
                module.qcompile_loaded = True  # type: ignore[assignment]
        if not layers:
            raise WeightError(str(model.config.name_or_path), "tensors of quantized layers", "none in the safetensors files")

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        entry = entry_of(self)
        model.config.quantization_config = entry
        FRONT_DOORS[entry["quant_method"]](model)
        return model


def entry_of(quantizer: Any) -> dict[str, Any]:
    entry: dict[str, Any] = quantizer.quantization_config.entry
    return entry


@cache
def register() -> None:
    """Make transformers know the quantizer; once."""
    register_quantization_config(METHOD)(Config)
    register_quantizer(METHOD)(Quantizer)


Stored = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def stored_layers(model: Any, files: Iterable[str]) -> dict[str, Stored]:
    """For every quantized layer of the files that the model has, by its path: the name, dtype and shape of its tensors."""
    stems: dict[str, Stored] = {}
    for file in files:
        if not str(file).endswith(".safetensors"):
            raise WeightError(str(file), "a .safetensors file", "another kind of file")
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - the reader is no dictionary
                stem, _, part = key.rpartition(".")
                if part in {*PARTS, "weight", "bias"}:
                    piece = tensors.get_slice(key)
                    stems.setdefault(stem, {})[part] = (DTYPES[piece.get_dtype()], tuple(piece.get_shape()))
    rename = _renaming(model)
    found = {rename(stem): parts for stem, parts in stems.items() if is_quantized(parts)}
    found.pop("", None)  # merged with others while loading
    return found


def is_quantized(parts: Stored) -> bool:
    return any(name in parts for name in PACKED) or ("weight_scale" in parts and "weight" in parts)


def _renaming(model: Any) -> Any:
    """Layer name in the files -> path in the model as transformers renames while loading; "" for layers that it merges."""
    mapping = get_model_conversion_mapping(model)
    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    expected = model.state_dict()

    def rename(stem: str) -> str:
        key, merged = rename_source_key(f"{stem}.weight", renamings, converters, model.base_model_prefix, expected)
        if merged is not None:
            return ""
        if key not in expected:
            what = f"a layer that {type(model).__name__} lacks"
            raise UnsupportedSchemeError(stem, what, ["layers of the model"], "Pass model_class=... to qcompile.load.")
        return key.removesuffix(".weight")

    return rename


def _give_parameters(path: str, module: nn.Linear, parts: Stored) -> None:
    names = [name for name in parts if name in PARTS]
    if "weight" in parts:
        dtype, shape = parts["weight"]
        if dtype != torch.int8:
            known, way_out = compressed_tensors.KNOWN_SCHEMES, compressed_tensors.WAY_OUT
            raise UnsupportedSchemeError(path, f"weights stored as {dtype}", known, way_out)
        names.append("weight")
    if "bias" in parts and module._parameters.get("bias") is None:
        names.append("bias")
    del module.weight
    if "weight" not in parts:
        module.__class__ = LoadingLinear
    for name in names:
        dtype, shape = parts[name]
        module._parameters.pop(name, None)
        module.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False))
