"""GPTQ layers become layers that dequantize in their own forward; which zero-point convention holds is decided by the data.

How, says zero_convention; the note of every layer says what was read, and how clearly the data show it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.errors import QCompileError, UnsupportedSchemeError, WeightError
from qcompile.formats.words import unpack_words
from qcompile.frontends import grouped, notes
from qcompile.frontends.stored_checks import FLOATS, enum_text, need_finite, need_groups, need_tensor
from qcompile.frontends.zero_convention import Evidence, channels, decide, evidence
from qcompile.operators import Structure

KNOWN_BITS = (2, 3, 4, 8)
DISAGREES = "its own forward cannot be traced and agrees with no GPTQ reading: left as it is"
WAY_OUT = "Load the model dense, or quantize it to 2, 3, 4 or 8 bits."


@dataclass(frozen=True)
class Shape:
    """Sizes that the tensors of one layer agree on."""

    bits: int
    group: int
    n: int
    k: int


Plan = tuple[Any, str, Structure, tuple[bool, bool], str]
Layer = tuple[str, Any, Shape]


def prepare(model: nn.Module, strict: bool = False) -> None:
    """Give GPTQ modules of known libraries, and others whose own forward cannot be traced, a traceable forward.

    Modules of other code whose forward Dynamo captures whole are left alone: recognition reads them by value. A layer of another
    width, or whose tensors contradict each other, stays as it was, and its note says why; with `strict` it raises
    UnsupportedSchemeError or WeightError before anything is changed.
    """
    found = _sound_layers(model, strict)
    if not found:
        return
    seen = {path: seen_in(module, shape) for path, module, shape in found}
    label = labelled_version(model)
    version, why = decide(list(seen.values()), label)
    plans: list[Plan] = []
    known: dict[type, bool] = {}
    for path, module, shape in found:
        try:
            plan = _plan((path, module, shape), seen[path].stored, version, why, known)
        except QCompileError as error:
            if strict:
                raise
            grouped.left_as_it_is(module, error, "gptq")
            continue
        if plan is not None:
            plans.append(plan)
    for module, path, structure, used, note in plans:
        grouped.replace(module, path, structure, used, note)


def _sound_layers(model: nn.Module, strict: bool) -> list[Layer]:
    """GPTQ layers whose tensors agree; with `strict` one that does not raises, otherwise its note says why."""
    found: list[Layer] = []
    for path, module in grouped.candidates(model):
        try:
            shape = shape_of(path, module)
            if shape is not None:
                check(path, module, shape)
                found.append((path, module, shape))
        except QCompileError as error:
            if strict:
                raise
            grouped.left_as_it_is(module, error, "gptq")
    return found


def _plan(layer: Layer, stored: tuple[int, int] | None, version: int, why: str, known: dict[type, bool]) -> Plan | None:
    """What becomes of one layer; None if it stays as it is."""
    path, module, shape = layer
    said = module_version(module)
    here = said or version
    note = why if said is None else f"zero points read as version {said}, as the module says"
    if grouped.of_library(module):
        if not grouped.in_checkpoint_order(module):
            grouped.left_in_kernels_order(module, "gptq", shape.n, shape.k)
            return None
        structure, used = reading(path, module, shape, stored, here)
        return module, path, structure, used, note
    x = grouped.probe(module, shape.k)
    if known.setdefault(type(module), grouped.traceable(module, x)):
        return None
    chosen = by_own_forward(module, path, shape, stored, x)
    if chosen is None:
        notes.decline(module, notes.Declined(DISAGREES, "gptq", shape.n, shape.k))
        return None
    return module, path, *chosen


def shape_of(path: str, module: Any) -> Shape | None:
    """The layer's sizes, or None if its qweight is not packed along K (AWQ packs along N)."""
    qweight, scales, qzeros = module.qweight, module.scales, getattr(module, "qzeros", None)
    groups, n = scales.shape
    if qweight.shape[1] != n:
        return None
    if qzeros is not None and qzeros.dim() == 2 and n and qzeros.shape[1] and qzeros.shape[1] * 32 % n == 0:
        bits = qzeros.shape[1] * 32 // n
    else:
        bits = int(getattr(module, "bits", 0) or 0)
    if bits not in KNOWN_BITS:
        raise UnsupportedSchemeError(
            path, f"GPTQ with {bits or 'unknown'} bits", [f"{width} bits" for width in KNOWN_BITS], WAY_OUT
        )
    k = qweight.shape[0] * 32 // bits
    if groups == 0 or k == 0 or k % groups:
        raise WeightError(f"{path}.scales", f"[G, {n}] with G a divisor of K={k}", str(list(scales.shape)))
    return Shape(bits, k // groups, n, k)


def check(path: str, module: Any, shape: Shape) -> None:
    """WeightError unless dtypes, g_idx and scales are what GPTQ has; values are looked at where there are any (not on meta)."""
    groups, g_idx, qzeros = shape.k // shape.group, getattr(module, "g_idx", None), getattr(module, "qzeros", None)
    need_tensor(f"{path}.scales", module.scales, FLOATS, (groups, shape.n))
    if qzeros is not None and qzeros.numel():
        need_tensor(f"{path}.qzeros", qzeros, (torch.int32,), (groups, shape.n * shape.bits // 32))
    if g_idx is not None and g_idx.numel():
        need_groups(f"{path}.g_idx", g_idx, shape.k, shape.group)
    need_finite(f"{path}.scales", module.scales)


def stored_zeros(module: Any, shape: Shape) -> tuple[int, int] | None:
    """Least and largest stored zero point, or None if the layer has none."""
    qzeros = getattr(module, "qzeros", None)
    if qzeros is None or qzeros.numel() == 0:
        return None
    least, most = torch.aminmax(unpack_words(qzeros, shape.bits, shape.k // shape.group, shape.n))
    return int(least), int(most)


def seen_in(module: Any, shape: Shape) -> Evidence:
    """What the layer's codes and zero points show about the convention."""
    stored, bits, groups = stored_zeros(module, shape), shape.bits, shape.k // shape.group
    if stored is None or Evidence(bits, stored).version is not None:
        return Evidence(bits, stored)
    chosen = channels(shape.n, shape.k).to(module.qweight.device)
    codes = unpack_words(module.qweight.detach().index_select(1, chosen).t(), bits, len(chosen), shape.k)
    zeros = unpack_words(module.qzeros.detach(), bits, groups, shape.n).index_select(1, chosen).t()
    g_idx = getattr(module, "g_idx", None)
    columns = (
        torch.arange(shape.k, device="cpu", dtype=torch.int64) // shape.group
        if g_idx is None or g_idx.numel() == 0
        else g_idx.detach().long()
    )
    return evidence(bits, stored, codes.cpu(), zeros.cpu(), columns.cpu())


def labelled_version(model: nn.Module) -> int:
    """1 or 2 as `checkpoint_format` of the model's quantization_config says; 1 if it says nothing."""
    entry: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    label = entry.get("checkpoint_format") if isinstance(entry, dict) else getattr(entry, "checkpoint_format", None)
    return 2 if enum_text(label) == "gptq_v2" else 1


def module_version(module: Any) -> int | None:
    """1 or 2 as the library's module itself says (it may have converted its zero points in memory), or None."""
    method = getattr(module, "qzero_format", None)
    said = method() if callable(method) else None
    return int(said) if isinstance(said, int) and said in {1, 2} else None


def reading(
    path: str, module: Any, shape: Shape, stored: tuple[int, int] | None, version: int
) -> tuple[Structure, tuple[bool, bool]]:
    """How the layer's tensors are read, and whether qzeros and g_idx take part: not where they are trivial."""
    middle = 1 << (shape.bits - 1)
    symmetric = stored is None or stored in {(middle - 1, middle - 1), (middle, middle)}
    if not symmetric and version == 1 and shape.bits == 8 and stored is not None and stored[1] == 255:
        raise WeightError(f"{path}.qzeros", "stored zero points up to 254 (version 1, 8 bits)", "255, which would mean 256")
    layout = "gptq" if version == 1 else "gptq_v2"
    ordered = in_order(path, getattr(module, "g_idx", None), shape)
    return Structure(layout, shape.bits, shape.group, shape.n, shape.k), (not symmetric, not ordered)


def in_order(path: str, g_idx: Tensor | None, shape: Shape) -> bool:
    """Whether g_idx says nothing (columns in order). WeightError unless every group has its `group` columns."""
    if g_idx is None or g_idx.numel() == 0:
        return True
    need_groups(f"{path}.g_idx", g_idx, shape.k, shape.group)
    return torch.equal(g_idx.long(), torch.arange(shape.k, device=g_idx.device, dtype=torch.int64) // shape.group)


def by_own_forward(
    module: Any, path: str, shape: Shape, stored: tuple[int, int] | None, x: Tensor
) -> tuple[Structure, tuple[bool, bool], str] | None:
    """The reading whose result is that of the module's own forward on `x`; None if it cannot run or none agrees."""
    expected = grouped.own_result(module, x)
    if expected is None:
        return None
    has_zeros = stored is not None
    has_order = not in_order(path, getattr(module, "g_idx", None), shape)
    for zeros in (False, True) if has_zeros else (False,):
        for layout in ("gptq", "gptq_v2", "gptq_wrapped") if zeros else ("gptq",):
            structure, used = Structure(layout, shape.bits, shape.group, shape.n, shape.k), (zeros, has_order)
            if grouped.agreement(module, structure, used, x, expected):
                return structure, used, f"read as {layout}{'' if zeros else ', symmetric'}, which its own forward confirms"
    return None
