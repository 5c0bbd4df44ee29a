"""Reads the `quantization_config` of a config.json: which method, and for compressed-tensors which scheme a layer has."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from qcompile.errors import UnsupportedSchemeError

METHODS = ("compressed-tensors", "gptq", "awq")
# compressed-tensors wrote its entry under this name before it became `quantization_config`.
LEGACY_NAME = "compression_config"
# Names of a layer's class and of those that it is derived from.
Kinds = tuple[str, ...]
NAMES = ("quantization_config", LEGACY_NAME)


def known_methods() -> list[str]:
    return [f"quant_method {method!r}" for method in METHODS]


def legacy_entry(config: Any) -> dict[str, Any] | None:
    """The entry as a dictionary, from the config or its text part; None if the folder is not quantized."""
    for part in (config, getattr(config, "text_config", None)):
        for name in NAMES:
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


def scheme_of(entry: Mapping[str, Any], path: str, kinds: Kinds = ("Linear",)) -> Scheme:
    """The scheme of the group whose targets name the layer most closely; UnsupportedSchemeError if none does."""
    group = group_of(entry, path, kinds)
    if group is None:
        raise UnsupportedSchemeError(
            path, "without a config group", ["layers that a config group's targets name"], "Repair config.json."
        )
    form = group.get("format") or entry.get("format", "")
    parts = {name: _arguments(group.get(name)) for name in ("weights", "input_activations", "output_activations")}
    return Scheme(str(form), **parts)


def group_of(entry: Mapping[str, Any], path: str, kinds: Kinds = ("Linear",)) -> Mapping[str, Any] | None:
    """The config group of a layer, as compressed-tensors chooses among several.

    A target that is its name counts before a pattern, a pattern before its class; of several patterns the first in the alphabet; of
    several groups with the same target the last.
    """
    best: tuple[tuple[int, str], Mapping[str, Any] | None] = ((len(_WAYS), ""), None)
    groups: Iterable[Mapping[str, Any]] = entry.get("config_groups", {}).values()
    for group in groups:
        for target in group.get("targets", ()):
            closeness = _closeness(target, path, kinds)
            if closeness < len(_WAYS) and (best[1] is None or (closeness, target) <= best[0]):
                best = (closeness, target), group
    return best[1]


def ignores(entry: Mapping[str, Any], path: str, kinds: Kinds = ("Linear",)) -> bool:
    """Whether the entry's `ignore` names the layer."""
    return any(_closeness(target, path, kinds) < len(_WAYS) for target in entry.get("ignore") or ())


def promises(entry: Mapping[str, Any], path: str, kinds: Kinds = ("Linear",)) -> bool:
    """Whether a target names the layer as compressed-tensors reads targets (not by the end of its name), and `ignore` does not."""
    groups: Iterable[Mapping[str, Any]] = entry.get("config_groups", {}).values()
    targets = [target for group in groups if group.get("weights") is not None for target in group.get("targets", ())]
    found = {_closeness(target, path, kinds) for target in targets}
    return bool(found & {0, 2, 3}) and not ignores(entry, path, kinds)


# How a target can name a layer, the closest way first.
_WAYS: tuple[Callable[[str, str, Kinds], bool], ...] = (
    lambda target, path, _: target == path,
    lambda target, path, _: path.endswith(f".{target}"),
    lambda target, path, _: target.startswith("re:") and re.match(target.removeprefix("re:"), path) is not None,
    lambda target, _, kinds: target in kinds,
)


def _closeness(target: str, path: str, kinds: Kinds) -> int:
    return next((number for number, way in enumerate(_WAYS) if way(target, path, kinds)), len(_WAYS))


def _arguments(given: Mapping[str, Any] | None) -> Any:
    """The arguments as attributes; a missing strategy follows from the group size, as compressed-tensors infers it."""
    if given is None:
        return None
    size = given.get("group_size")
    strategy = given.get("strategy") or ("tensor" if size is None else "group" if size > 0 else "channel")
    return SimpleNamespace(
        num_bits=int(given.get("num_bits", 8)),
        type=str(given.get("type", "int")).lower(),
        strategy=str(strategy).lower(),
        group_size=size,
        block_structure=given.get("block_structure"),
        symmetric=bool(given.get("symmetric", True)),
        dynamic=given.get("dynamic", False),
        scale_dtype=given.get("scale_dtype"),
    )
