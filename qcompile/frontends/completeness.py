"""Compares what a folder's files hold with what the model and its config ask for, before any tensor is read.

A tensor that is missing, stored twice, too much, or of another shape or dtype is a CheckpointError that names file and tensor.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from qcompile.errors import CONFIG_WAY_OUT, CheckpointError
from qcompile.frontends.checkpoint_schemes import promises
from qcompile.frontends.folder import Headers, StoredTensor
from qcompile.frontends.session import Session
from qcompile.frontends.transformers_internals import (
    WeightConverter,
    WeightRenaming,
    get_model_conversion_mapping,
    rename_source_key,
)

# Names after the layer's own, in every format; `weight` only counts if there is a `weight_scale` beside it.
PARTS = (
    *("weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape", "weight_g_idx"),
    *("input_scale", "input_zero_point", "input_global_scale", "qweight", "qzeros", "scales", "g_idx"),
)
SHARED = (".weight", ".bias")  # parts that layers without quantization have too
PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Buffers that older versions of transformers stored and every version computes itself.
COMPUTED = (r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$", r"(^|\.)position_ids$", r"(^|\.)(attn|attention)\.(masked_)?bias$")
CACHE_SCALES = r"\.(?:[kqv]|kv)_(?:scale|zero_point)$|\.[kqv]_proj\.output_(?:scale|zero_point)$"
CHOOSE = "Pass the model_class that the folder was saved from, or save it again without this tensor."

Stored = dict[str, StoredTensor]


class _Names:
    """Names in the files -> names in the model, as transformers renames while loading."""

    def __init__(self, model: Any) -> None:
        mapping = get_model_conversion_mapping(model)
        self.renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
        self.converters = [step for step in mapping if isinstance(step, WeightConverter)]
        self.prefix, self.expected = model.base_model_prefix, model.state_dict()

    def __call__(self, key: str) -> tuple[str, bool]:
        """The name in the model, and whether transformers merges or splits the tensor on the way."""
        found, pattern = rename_source_key(key, self.renamings, self.converters, self.prefix, self.expected)
        if found not in self.expected and key in self.expected:
            found, pattern = rename_source_key(key, [], [], self.prefix, self.expected)
        return found, pattern is not None

    def known(self, key: str) -> bool:
        """Whether the model itself has a tensor of that name."""
        return self(key)[0] in self.expected


def is_quantized(parts: Iterable[str]) -> bool:
    return not set(parts).isdisjoint(PARTS)


def compared(model: Any, session: Session) -> tuple[dict[str, Stored], dict[str, list[str]]]:
    """Quantized layers by path with their tensors, and those that transformers merges: name in the model -> names in the files."""
    names = _Names(model)
    stems = _stems({key: tensor for key, tensor in session.headers.items() if key.endswith(SHARED) or not names.known(key)})
    layers, merged = _layers(model, session, names, stems)
    inside = {f"{stem}.{part}" for stem, parts in stems.items() for part in parts}
    covered = set(merged)
    for path, parts in layers.items():
        covered |= {f"{path}.weight", *(f"{path}.bias" for part in parts if part == "bias")}
    _others(model, session, names, {key for key in session.headers if key not in inside}, covered)
    _need_all(model, session, names.expected, covered)
    _need_promised(model, session, layers)
    return layers, merged


def need_dense(model: Any, session: Session) -> None:
    """The same for a folder that is not quantized: its files hold what the model has, and no layer in packed form."""
    layers, merged = compared(model, session)
    for path in (*layers, *merged):
        file, expected = f"{session.folder}/config.json", f"an entry, because the files hold {path} quantized"
        raise CheckpointError(file, "quantization_config", expected, "nothing", CONFIG_WAY_OUT)


def _stems(headers: Headers) -> dict[str, Stored]:
    """The quantized layers of the files, by their name there."""
    found: dict[str, Stored] = {}
    for key, tensor in headers.items():
        stem, _, part = key.rpartition(".")
        if part in {*PARTS, "weight", "bias"}:
            found.setdefault(stem, {})[part] = tensor
    return {stem: parts for stem, parts in found.items() if is_quantized(parts) or _is_narrow(parts.get("weight"))}


def _is_narrow(weight: StoredTensor | None) -> bool:
    """Whether its values take one byte each, as those of no dense weight do."""
    return weight is not None and weight.dtype.itemsize == 1 and weight.dtype is not torch.bool


def _layers(
    model: Any, session: Session, names: _Names, stems: dict[str, Stored]
) -> tuple[dict[str, Stored], dict[str, list[str]]]:
    layers: dict[str, Stored] = {}
    merged: dict[str, list[str]] = {}
    for stem, parts in stems.items():
        target, joined = names(f"{stem}.weight")
        if target not in names.expected:
            if not _left_out(model, session, stem):
                part, tensor = next(iter(parts.items()))
                what = f"a layer that {type(model).__name__} has"
                raise CheckpointError(tensor.file, f"{stem}.{part}".lstrip("."), what, f"another one, {tensor}", CHOOSE)
            continue
        if joined:
            merged.setdefault(target, []).append(stem)
            continue
        path = target.removesuffix(".weight")
        if path in layers:
            first = session.stems[path]
            raise CheckpointError(next(iter(parts.values())).file, stem, "a layer that is stored once", f"it as {first} too")
        layers[path], session.stems[path] = parts, stem
    for target, found in merged.items():
        _need_alike(target, {stem: stems[stem] for stem in found})
    return layers, merged


def _need_alike(target: str, stems: dict[str, Stored]) -> None:
    """Layers of one kind that become one tensor hold the same parts, of the same shapes and dtypes."""
    first: dict[str, tuple[str, Stored]] = {}
    for stem, parts in stems.items():
        kind = re.sub(r"\d+", "*", stem)
        other, wanted = first.setdefault(kind, (stem, parts))
        for part in sorted({*wanted, *parts}):
            here, there = parts.get(part), wanted.get(part)
            if here is None or there is None or (here.dtype, here.shape) != (there.dtype, there.shape):
                file = next(iter(parts.values())).file
                expected = f"what {other}.{part} is, with which it becomes {target} ({there or 'nothing'})"
                raise CheckpointError(file, f"{stem}.{part}", expected, str(here or "nothing"))


def _others(model: Any, session: Session, names: _Names, keys: set[str], covered: set[str]) -> None:
    """Tensors that are no part of a quantized layer."""
    came: dict[str, str] = {}
    for key in sorted(keys):
        tensor = session.headers[key]
        target, joined = names(key)
        if target not in names.expected:
            if not joined and not harmless(model, session, target, key):
                what = f"a tensor that {type(model).__name__} has"
                raise CheckpointError(tensor.file, key, what, f"another one, {tensor}", CHOOSE)
            continue
        if joined:
            covered.add(target)
            continue
        if target in covered:
            first = came.get(target, f"parts of {target.rpartition('.')[0]}")
            raise CheckpointError(tensor.file, key, "a tensor that is stored once", f"it as {first} too")
        _need_fitting(tensor, key, names.expected[target])
        covered.add(target)
        came[target] = key


def _need_fitting(tensor: StoredTensor, key: str, wanted: Any) -> None:
    floats = wanted.dtype.is_floating_point
    fits = tensor.dtype in PLAIN if floats else not tensor.dtype.is_floating_point
    if tuple(tensor.shape) != tuple(wanted.shape) or not fits:
        kind = "a floating point tensor" if floats else "an integer tensor"
        raise CheckpointError(tensor.file, key, f"{kind} {list(wanted.shape)}", str(tensor))


def _need_all(model: Any, session: Session, expected: dict[str, Any], covered: set[str]) -> None:
    tied: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    pairs = {*tied.items(), *((source, target) for target, source in tied.items())}
    shared = {name for name, other in pairs if other in covered}
    ignored = [*(model._keys_to_ignore_on_load_missing or ()), *COMPUTED]
    missing = [name for name in expected if name not in covered | shared and not _matches(ignored, name)]
    if missing:
        wanted = expected[missing[0]]
        more = f" ({len(missing) - 1} more tensors are missing)" if len(missing) > 1 else ""
        beside = _beside(session, missing[0])
        kind = f"{wanted.dtype} {list(wanted.shape)}, or its quantized form"
        raise CheckpointError(beside or session.folder, missing[0], kind, f"nothing{more}")


def _beside(session: Session, name: str) -> str:
    """The file in which tensors of the same block lie."""
    parent = name.rpartition(".")[0]
    while parent:
        for key, tensor in session.headers.items():
            if key.startswith(f"{parent}."):
                return tensor.file
        parent = parent.rpartition(".")[0]
    return ""


def _need_promised(model: Any, session: Session, layers: dict[str, Stored]) -> None:
    """Every Linear that the config gives a scheme is stored quantized; the head alone is left out without being named."""
    entry = session.entry or {}
    if entry.get("quant_method") != "compressed-tensors":
        return
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for path, module in model.named_modules():
        if type(module) is not nn.Linear or path in layers or module is head or not promises(entry, path):
            continue
        stored = [key for key in session.headers if key.endswith(f"{path}.weight") or path.endswith(key.removesuffix(".weight"))]
        key = max(stored, key=len, default=f"{path}.weight")
        if not promises(entry, key.removesuffix(".weight")):
            continue
        found = session.headers.get(key)
        expected = "a quantized weight, because a target in config.json names the layer and `ignore` does not"
        raise CheckpointError(session.file_of(f"{path}.weight"), key, expected, str(found or "nothing"))


def harmless(model: Any, session: Session, target: str, key: str) -> bool:
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), *COMPUTED]
    if (session.entry or {}).get("kv_cache_scheme"):
        ignored.append(CACHE_SCALES)
    return _matches(ignored, target) or _matches(ignored, key) or _left_out(model, session, target.rpartition(".")[0])


def _left_out(model: Any, session: Session, path: str) -> bool:
    """Whether the caller chose a class that has no such module at all."""
    return session.chosen and not _has(model, path)


def _has(model: Any, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) is not None for pattern in patterns)
