"""Compares a GPTQ or AWQ layer of a folder with the bits, group size and flags that config.json promises for it."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qcompile.errors import WeightError
from qcompile.frontends.completeness import Stored
from qcompile.frontends.session import Session
from qcompile.frontends.stored_checks import FLOATS

GROUPED_PARTS = {"qweight", "qzeros", "scales", "g_idx"}


def need_as_configured(path: str, module: Any, parts: Stored, entry: Mapping[str, Any]) -> None:
    """WeightError unless the files hold exactly the tensors of a Linear [N, K] in this format, in their shapes and dtypes."""
    n, k = int(module.out_features), int(module.in_features)
    given = {**entry, **overrides(entry, path)}
    bits, group = int(given["bits"]), int(given["group_size"])
    group = k if group == -1 else group
    if k % group or (k * bits) % 32 or (n * bits) % 32:
        expected = f"a group size that divides K={k}, and whole words of {bits} bits along K and N={n}"
        raise WeightError(f"{path}.scales", expected, f"group size {group}")
    for name in sorted(set(parts) - GROUPED_PARTS - {"bias"}):
        raise WeightError(f"{path}.{name}", f"only {', '.join(sorted(GROUPED_PARTS))} and a bias", f"it too, {parts[name]}")
    ints: tuple[torch.dtype, ...] = (torch.int32,)
    words = (k, n // 8) if entry["quant_method"] == "awq" else (k * bits // 32, n)
    _need(path, "qweight", parts, ints, words, f"{bits} bits")
    _need(path, "scales", parts, FLOATS, (k // group, n), f"a group size of {group}")
    if entry["quant_method"] == "gptq" or given.get("zero_point", True) or "qzeros" in parts:
        _need(path, "qzeros", parts, ints, (k // group, n * bits // 32), f"{bits} bits and a group size of {group}")
    if given.get("desc_act") is True or "g_idx" in parts:
        _need(path, "g_idx", parts, (torch.int32, torch.int64), (k,), "act-order")
    if "bias" in parts:
        _need(path, "bias", parts, FLOATS, (n,), f"N={n}")


def need_order(model: nn.Module, session: Session) -> None:
    """WeightError if a g_idx is not in order although config.json says `desc_act: false`: one of the two is wrong."""
    entry = session.entry or {}
    for path in session.stems:
        if {**entry, **overrides(entry, path)}.get("desc_act") is not False:
            continue
        g_idx: Any = getattr(model.get_submodule(path), "g_idx", None)
        size = int(entry["group_size"])
        if g_idx is None or size == -1:
            continue
        if not torch.equal(g_idx.long(), torch.arange(len(g_idx), device=g_idx.device, dtype=torch.int64) // size):
            expected = "columns in order, because config.json says desc_act: false (true if the order is meant)"
            raise WeightError(f"{path}.g_idx", expected, "another order")


def overrides(entry: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """What GPTQModel's `dynamic` says about one layer; the first pattern that names it counts."""
    for pattern, changes in (entry.get("dynamic") or {}).items():
        name = str(pattern)
        try:
            hit = re.match(name.removeprefix("+:").removeprefix("-:"), path) is not None
        except re.error:
            continue
        if hit:
            return changes if isinstance(changes, Mapping) else {}
    return {}


def _need(path: str, name: str, parts: Stored, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...], because: str) -> None:
    found = parts.get(name)
    if found is None or found.dtype not in dtypes or found.shape != shape:
        kinds = " or ".join(str(dtype) for dtype in dtypes)
        raise WeightError(f"{path}.{name}", f"{kinds} {list(shape)} for {because}", str(found or "nothing"))
