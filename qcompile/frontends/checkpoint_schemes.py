"""Reads the `quantization_config` of a config.json: which method, and for compressed-tensors which scheme a layer has."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from qcompile.errors import UnsupportedSchemeError

METHODS = ("compressed-tensors", "gptq", "awq")
# compressed-tensors wrote its entry under this name before it became `quantization_config`.
LEGACY_NAME = "compression_config"


def known_methods() -> list[str]:
    return [f"quant_method {method!r}" for method in METHODS]


def legacy_entry(config: Any) -> dict[str, Any] | None:
    """The entry as a dictionary, from the config or its text part; None if the folder is not quantized."""
    for part in (config, getattr(config, "text_config", None)):
        for name in ("quantization_config", LEGACY_NAME):
            found = getattr(part, name, None)
            if found is not None:
                return dict(found) if isinstance(found, Mapping) else dict(found.to_dict())
    return None


@dataclass(frozen=True)
class Scheme:
    """One layer's scheme in the words of compressed-tensors; what the front door reads."""

    format: str
    weights: Any
    input_activations: Any
    output_activations: Any


def scheme_of(entry: Mapping[str, Any], path: str, class_name: str = "Linear") -> Scheme:
    """The scheme of the first group whose targets name the layer; UnsupportedSchemeError if none does."""
    groups: Iterable[Mapping[str, Any]] = entry.get("config_groups", {}).values()
    for group in groups:
        if any(_names(target, path, class_name) for target in group.get("targets", ())):
            form = group.get("format") or entry.get("format", "")
            parts = {name: _arguments(group.get(name)) for name in ("weights", "input_activations", "output_activations")}
            return Scheme(str(form), **parts)
    raise UnsupportedSchemeError(
        path, "without a config group", ["layers that a config group's targets name"], "Repair config.json."
    )


def _names(target: str, path: str, class_name: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), path) is not None
    return target in {class_name, path} or path.endswith(f".{target}")


def _arguments(given: Mapping[str, Any] | None) -> Any:
    """The arguments as attributes; a missing strategy follows from the group size, as compressed-tensors infers it."""
    if given is None:
        return None
    size = given.get("group_size")
    strategy = given.get("strategy") or ("tensor" if size is None else "group" if size > 0 else "channel")
    return SimpleNamespace(
        num_bits=int(given.get("num_bits", 8)),
        type=str(given.get("type", "int")).lower(),
        strategy=strategy,
        group_size=size,
        symmetric=bool(given.get("symmetric", True)),
        dynamic=given.get("dynamic", False),
    )
