"""Checks every field of a `quantization_config` that is read, so that a wrong one is named and not met as a TypeError."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from qcompile.errors import CONFIG_WAY_OUT, CheckpointError, UnsupportedSchemeError
from qcompile.frontends.checkpoint_schemes import METHODS, known_methods

Kind = tuple[str, Callable[[Any], bool]]


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


GPTQ_BITS, AWQ_BITS = (2, 3, 4, 8), (4,)
STRATEGIES = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")

TEXT: Kind = ("a text", lambda value: isinstance(value, str))
FLAG: Kind = ("true or false", lambda value: isinstance(value, bool))
OBJECT: Kind = ("an object", lambda value: isinstance(value, Mapping))
SIZE: Kind = ("a positive integer, or -1 for one group", lambda value: _integer(value) and (value > 0 or value == -1))
BITS: Kind = ("an integer from 1 to 16", lambda value: _integer(value) and 1 <= value <= 16)
NAMES: Kind = ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value))

GPTQ: dict[str, Kind] = {
    "bits": ("one of 2, 3, 4, 8", lambda value: _integer(value) and value in GPTQ_BITS),
    "group_size": SIZE,
    "sym": FLAG,
    "desc_act": FLAG,
    "checkpoint_format": TEXT,
    "dynamic": OBJECT,
}
AWQ: dict[str, Kind] = {
    "bits": ("4", lambda value: _integer(value) and value in AWQ_BITS),
    "group_size": SIZE,
    "zero_point": FLAG,
    "version": TEXT,
}
COMPRESSED_TENSORS: dict[str, Kind] = {
    "format": TEXT,
    "config_groups": ("an object with at least one group", lambda value: isinstance(value, Mapping) and len(value) > 0),
    "ignore": NAMES,
    "transform_config": OBJECT,
    "kv_cache_scheme": OBJECT,
}
GROUP: dict[str, Kind] = {
    "targets": NAMES,
    "weights": OBJECT,
    "input_activations": OBJECT,
    "output_activations": OBJECT,
    "format": TEXT,
}
ARGUMENTS: dict[str, Kind] = {
    "num_bits": BITS,
    "type": ("int or float", lambda value: isinstance(value, str) and value.lower() in {"int", "float"}),
    "strategy": (
        f"one of {', '.join(STRATEGIES)}",
        lambda value: isinstance(value, str) and value.lower() in STRATEGIES,
    ),
    "group_size": SIZE,
    "block_structure": (
        "two positive integers",
        lambda value: isinstance(value, list) and len(value) == 2 and all(_integer(item) and item > 0 for item in value),
    ),
    "symmetric": FLAG,
    "dynamic": ("true, false or a text", lambda value: isinstance(value, bool | str)),
}
REQUIRED = {"gptq": ("bits", "group_size"), "awq": ("bits", "group_size"), "compressed-tensors": ("config_groups",)}
FIELDS = {"gptq": GPTQ, "awq": AWQ, "compressed-tensors": COMPRESSED_TENSORS}


def checked(file: str, entry: object, way_out: str) -> dict[str, Any]:
    """The entry, if everything in it that qcompile reads has a type and a value that it may have.

    CheckpointError names file, field, what was expected and what was found; UnsupportedSchemeError a method or a form of it that is
    not known, with `way_out`.
    """
    where = "quantization_config"
    if not isinstance(entry, Mapping):
        raise CheckpointError(file, where, OBJECT[0], _shown(entry), CONFIG_WAY_OUT)
    method = entry.get("quant_method")
    if not isinstance(method, str) or not method:
        known = f"one of {', '.join(METHODS)}"
        raise CheckpointError(file, f"{where}.quant_method", known, _shown(method), CONFIG_WAY_OUT)
    if method not in METHODS:
        raise UnsupportedSchemeError(file, f"quant_method {method!r}", known_methods(), way_out)
    _fields(file, where, entry, FIELDS[method], REQUIRED[method])
    if method == "compressed-tensors":
        for name, group in entry["config_groups"].items():
            _group(file, f"{where}.config_groups.{name}", group)
        _patterns(file, f"{where}.ignore", entry.get("ignore") or [])
    _refuse_other_forms(file, method, entry, way_out)
    return dict(entry)


def _fields(file: str, where: str, given: Mapping[str, Any], kinds: Mapping[str, Kind], required: tuple[str, ...] = ()) -> None:
    for name, (expected, holds) in kinds.items():
        value = given.get(name)
        if (value is None and name in required) or (value is not None and not holds(value)):
            raise CheckpointError(file, f"{where}.{name}", expected, _shown(value), CONFIG_WAY_OUT)


def _group(file: str, where: str, group: object) -> None:
    if not isinstance(group, Mapping):
        raise CheckpointError(file, where, OBJECT[0], _shown(group), CONFIG_WAY_OUT)
    _fields(file, where, group, GROUP, ("targets",))
    _patterns(file, f"{where}.targets", group["targets"])
    for part in ("weights", "input_activations", "output_activations"):
        arguments = group.get(part)
        if arguments is None:
            continue
        _fields(file, f"{where}.{part}", arguments, ARGUMENTS)
        size, strategy = arguments.get("group_size"), str(arguments.get("strategy") or "").lower()
        grouped = strategy in {"group", "tensor_group"} and arguments.get("dynamic") in {None, False}
        if grouped and (size is None or size < 1):
            expected = f"a positive integer, because the strategy is {strategy}"
            raise CheckpointError(file, f"{where}.{part}.group_size", expected, _shown(size), CONFIG_WAY_OUT)


def _patterns(file: str, where: str, names: list[str]) -> None:
    for name in names:
        try:
            re.compile(name.removeprefix("re:") if name.startswith("re:") else "")
        except re.error as error:
            raise CheckpointError(file, where, "regular expressions after re:", f"{name!r} ({error})", CONFIG_WAY_OUT) from error


def _refuse_other_forms(file: str, method: str, entry: Mapping[str, Any], way_out: str) -> None:
    """Forms of a known method whose tensors lie in another order, or that change more than the weights."""
    if method == "gptq":
        form = str(entry.get("checkpoint_format") or "gptq").lower()
        if form not in {"gptq", "gptq_v2"} or entry.get("is_marlin_format") is True:
            raise UnsupportedSchemeError(file, f"GPTQ in the format {form}", ["gptq", "gptq_v2"], way_out)
    elif method == "awq":
        version = str(entry.get("version") or "gemm").lower()
        if version != "gemm":
            raise UnsupportedSchemeError(file, f"AWQ in the version {version}", ["gemm"], way_out)
    elif (entry.get("transform_config") or {}).get("config_groups"):
        raise UnsupportedSchemeError(file, "with a transform_config", ["weights that are not rotated"], way_out)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
