"""The piece that plugs into transformers' loading: it gives each quantized layer the parameters that the files hold for it."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from qcompile.errors import CONFIG_WAY_OUT, CheckpointError, UnsupportedSchemeError, WeightError
from qcompile.frontends import awq, compressed_tensors, foreign, gptq, grouped, notes
from qcompile.frontends.checkpoint_schemes import group_of, ignores, scheme_of
from qcompile.frontends.completeness import PARTS, Stored, compared
from qcompile.frontends.experts import DequantizeMerged, declined, version_of_merged
from qcompile.frontends.folder import headers
from qcompile.frontends.grouped_entry import need_as_configured, need_order, overrides
from qcompile.frontends.other_layers import SHAPE, become_linear, give_back, loaded, loading, pose_as_linear, transposed
from qcompile.frontends.session import Session, current
from qcompile.frontends.transformers_internals import (
    HfQuantizer,
    QuantizationConfigMixin,
    register_quantization_config,
    register_quantizer,
)

METHOD = "qcompile"
FRONT_DOORS = {"compressed-tensors": compressed_tensors.prepare, "gptq": gptq.prepare, "awq": awq.prepare}


class Config(QuantizationConfigMixin):
    """The checkpoint's own entry, handed through transformers."""

    def __init__(self, entry: dict[str, Any] | None = None, **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.entry = entry or {}


# Typed as Any: transformers annotates its abstract methods in ways that no subclass of its own satisfies.
Base: Any = HfQuantizer


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
        session = current()
        session.headers = session.headers or headers(kwargs.get("checkpoint_files") or ())
        layers, merged = compared(model, session)
        if not layers and not merged:
            raise CheckpointError(session.folder, "safetensors files", "tensors of quantized layers", "none")
        for path, parts in layers.items():
            try:
                _ready(model, path, parts, session)
            except WeightError as error:
                raise session.error(error) from error
        session.dtypes = {path: model.dtype for path in session.foreign}
        if merged:
            version_of_merged(merged, session)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        session, entry = current(), entry_of(self)
        model.config.quantization_config = entry
        for path in session.foreign:
            foreign.attach(loaded(model.get_submodule(path)), session.schemes[path])
        try:
            FRONT_DOORS[entry["quant_method"]](model, strict=True)
            if entry["quant_method"] == "gptq":
                need_order(model, session)
        except WeightError as error:
            raise session.error(error) from error
        for path, lent in session.lent.items():
            give_back(model.get_submodule(path), lent, entry["quant_method"], model.dtype)
        for path in session.foreign:
            foreign.settle(model.get_submodule(path), path, session.dtypes[path])
        for path, count in session.merged.items():
            notes.decline(model.get_submodule(path), declined(count, session))
        notes.register(model)
        return model


def entry_of(quantizer: Any) -> dict[str, Any]:
    entry: dict[str, Any] = quantizer.quantization_config.entry
    return entry


@cache
def register() -> None:
    """Make transformers know the quantizer; once."""
    register_quantization_config(METHOD)(Config)
    register_quantizer(METHOD)(Quantizer)


def _ready(model: Any, path: str, parts: Stored, session: Session) -> None:
    """Give one module the parameters that its front door or its library expects; WeightError if the files hold others."""
    entry = session.entry or {}
    module: nn.Module = model.get_submodule(path)
    if entry["quant_method"] == "compressed-tensors":
        _ready_compressed(model, path, module, parts, session)
        return
    if not become_linear(module):
        n, k = _stored_sizes(path, parts, entry)
        session.lent[path] = pose_as_linear(path, module, n, k)
    need_as_configured(path, module, parts, entry)
    _give_parameters(module, parts)
    module.__dict__["qcompile_loaded"] = True
    _check_meta(path, module, entry["quant_method"])


def _stored_sizes(path: str, parts: Stored, entry: Mapping[str, Any]) -> tuple[int, int]:
    """[N, K] of the weight that a GPTQ or AWQ layer's tensors hold."""
    if not {"qweight", "scales"} <= set(parts) or len(parts["scales"].shape) != 2:
        raise WeightError(f"{path}.qweight", "qweight and scales of two dimensions", "others")
    words = parts["qweight"].shape[0]
    bits = int({**entry, **overrides(entry, path)}["bits"])
    return parts["scales"].shape[1], words if entry["quant_method"] == "awq" else words * 32 // bits


def _ready_compressed(model: Any, path: str, module: nn.Module, parts: Stored, session: Session) -> None:
    entry, kinds = session.entry or {}, _kinds(module)
    holder: Any = module
    if transposed(module) is False:
        become_linear(module)
    group = _group(path, entry, kinds, session)
    is_linear = type(module) is nn.Linear
    _give_parameters(module, parts)
    holder.quantization_scheme = scheme_of(entry, path, kinds)
    holder.quantization_status = "compressed"
    try:
        if not is_linear:
            raise UnsupportedSchemeError(path, "of a layer that is no Linear", compressed_tensors.KNOWN_SCHEMES, "")
        compressed_tensors.plan(path, module, model)
        _need_parts(path, parts, *compressed_tensors.parts_of(holder.quantization_scheme))
    except UnsupportedSchemeError as error:
        session.foreign[path] = error.scheme
        scheme = foreign.library_scheme(session.folder, path, entry, group, error.scheme)
        session.schemes[path] = scheme
        foreign.need_parts(path, *foreign.sizes(module), parts, scheme)
        del holder.quantization_scheme, holder.quantization_status


def _kinds(module: nn.Module) -> tuple[str, ...]:
    """The names of its class and of those that this one is derived from, any of which a target may mean."""
    return tuple(kind.__name__ for kind in type(module).__mro__ if issubclass(kind, nn.Module))


def _group(path: str, entry: Mapping[str, Any], kinds: tuple[str, ...], session: Session) -> Mapping[str, Any]:
    group, file = group_of(entry, path, kinds), f"{session.folder}/config.json"
    if group is None or group.get("weights") is None:
        what, expected = "quantization_config.config_groups", f"a group with weights whose targets name {path}"
        raise CheckpointError(file, what, expected, "none, though the files hold it quantized", CONFIG_WAY_OUT)
    if ignores(entry, path, kinds):
        what, expected = "quantization_config.ignore", "layers that the files hold dense"
        raise CheckpointError(file, what, expected, f"{path}, which they hold quantized", CONFIG_WAY_OUT)
    return group


def _need_parts(path: str, parts: Stored, must: set[str], may: set[str]) -> None:
    """WeightError unless the files hold what the scheme has, and nothing more."""
    held = set(parts) - {"bias"}
    for name in sorted(must - held):
        raise WeightError(f"{path}.{name}", "a tensor of that name, which the scheme has", "nothing")
    for name in sorted(held - must - may):
        raise WeightError(f"{path}.{name}", f"only {', '.join(sorted(must | may))} and a bias", f"it too, {parts[name]}")


def _check_meta(path: str, module: Any, method: str) -> None:
    """What the front door will check, already now for shapes and dtypes."""
    found = dict(grouped.candidates(module))
    if "" not in found:
        raise WeightError(f"{path}.qweight", "int32 qweight and floating point scales, both of two dimensions", "others")
    if method == "awq":
        structure = awq.structure_of(path, module)
        if structure is None:
            raise WeightError(f"{path}.qweight", "a tensor [K, N / 8]", str(list(module.qweight.shape)))
        awq.check(path, module, structure)
        return
    shape = gptq.shape_of(path, module)
    if shape is None:
        raise WeightError(f"{path}.qweight", "a tensor [K * bits / 32, N]", str(list(module.qweight.shape)))
    gptq.check(path, module, shape)


def _give_parameters(module: Any, parts: Stored) -> None:
    kind: Any = type(module)
    shape = tuple(module.weight.shape)
    names = [name for name in parts if name != "bias"]
    if "bias" in parts and module._parameters.get("bias") is None:
        names.append("bias")
    del module.weight
    if "weight" not in parts:
        module.__dict__[SHAPE] = shape
        module.__class__ = loading(kind)
    for name in names:
        module._parameters.pop(name, None)
        empty = torch.empty(parts[name].shape, dtype=parts[name].dtype, device="meta")
        module.register_parameter(name, nn.Parameter(empty, requires_grad=False))
