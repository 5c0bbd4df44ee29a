"""GPTQ layers become layers that dequantize in their own forward; which zero-point convention holds is decided by the data.

Version 1 of the format stores the zero point minus one, version 2 the zero point itself, and labels are wrong often enough: files
that say "gptq" with stored 8 everywhere give garbage when read as they claim. A symmetric layer shows the truth, because its zero
point is 2^(bits-1): stored 7 everywhere (4 bits) is version 1, stored 8 everywhere version 2. The symmetric layers of a model
decide for its others; only where there are none does the label decide. Either way the note of the module says what was read.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.errors import UnsupportedSchemeError, WeightError
from qcompile.frontends import grouped
from qcompile.frontends.product import Structure
from qcompile.readers.layouts import unpack_words

KNOWN_BITS = (2, 4, 8)
WAY_OUT = "Load the model dense, or quantize it to 2, 4 or 8 bits."


@dataclass(frozen=True)
class Shape:
    """Sizes that the tensors of one layer agree on."""

    bits: int
    group: int
    n: int
    k: int


def prepare(model: nn.Module) -> None:
    """Give GPTQ modules of known libraries, and others whose own forward cannot be traced, a traceable forward.

    Modules of other code whose forward Dynamo captures whole are left alone: recognition reads them by value. Raises
    UnsupportedSchemeError for other widths and WeightError for contradictory tensors, before anything is changed.
    """
    found = [(path, module, shape) for path, module in grouped.candidates(model) if (shape := shape_of(path, module)) is not None]
    if not found:
        return
    stored = {path: stored_zeros(module, shape) for path, module, shape in found}
    label = labelled_version(model)
    version, why = decide_version([(shape.bits, stored[path]) for path, _, shape in found], label)
    plans: list[tuple[Any, str, Structure, tuple[bool, bool], str]] = []
    known: dict[type, bool] = {}
    for path, module, shape in found:
        here = module_version(module) or version
        note = why if here == version else f"zero points read as version {here}, as the module says"
        structure, used = reading(path, module, shape, stored[path], here)
        if grouped.of_library(module):
            if not grouped.in_checkpoint_order(module):
                module.qcompile_note = f"{type(module).__name__} keeps its tensors in a kernel's own order: left as it is"
                continue
        else:
            x = grouped.probe(module, shape.k)
            if known.setdefault(type(module), grouped.traceable(module, x)):
                continue
            chosen = by_own_forward(module, path, shape, stored[path], x)
            if chosen is None:
                module.qcompile_note = "its own forward cannot be traced and agrees with no GPTQ reading: left as it is"
                continue
            structure, used, note = chosen
        plans.append((module, path, structure, used, note))
    for module, path, structure, used, note in plans:
        grouped.replace(module, path, structure, used, note)


def shape_of(path: str, module: Any) -> Shape | None:
    """The layer's sizes, or None if its qweight is not packed along K (AWQ packs along N)."""
    qweight, scales, qzeros = module.qweight, module.scales, getattr(module, "qzeros", None)
    groups, n = scales.shape
    if qweight.shape[1] != n:
        return None
    if qzeros is not None and qzeros.dim() == 2 and n and qzeros.shape[1] * 32 % n == 0:
        bits = qzeros.shape[1] * 32 // n
    else:
        bits = int(getattr(module, "bits", 0) or 0)
    if bits not in KNOWN_BITS:
        raise UnsupportedSchemeError(
            path, f"GPTQ with {bits or 'unknown'} bits", [f"{width} bits" for width in KNOWN_BITS], WAY_OUT
        )
    k = qweight.shape[0] * 32 // bits
    if groups == 0 or k % groups:
        raise WeightError(f"{path}.scales", f"[G, {n}] with G a divisor of K={k}", str(list(scales.shape)))
    if qzeros is not None and tuple(qzeros.shape) != (groups, n * bits // 32):
        raise WeightError(f"{path}.qzeros", f"int32 {[groups, n * bits // 32]}", f"{qzeros.dtype} {list(qzeros.shape)}")
    return Shape(bits, k // groups, n, k)


def stored_zeros(module: Any, shape: Shape) -> tuple[int, int] | None:
    """Least and largest stored zero point, or None if the layer has none."""
    qzeros = getattr(module, "qzeros", None)
    if qzeros is None or qzeros.numel() == 0:
        return None
    least, most = torch.aminmax(unpack_words(qzeros, shape.bits, shape.k // shape.group, shape.n))
    return int(least), int(most)


def labelled_version(model: nn.Module) -> int:
    """1 or 2 as `checkpoint_format` of the model's quantization_config says; 1 if it says nothing."""
    entry: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    label = entry.get("checkpoint_format") if isinstance(entry, dict) else getattr(entry, "checkpoint_format", None)
    return 2 if str(getattr(label, "value", label)) == "gptq_v2" else 1


def module_version(module: Any) -> int | None:
    """1 or 2 as the library's module itself says (it may have converted its zero points in memory), or None."""
    method = getattr(module, "qzero_format", None)
    said = method() if callable(method) else None
    return int(said) if isinstance(said, int) and said in {1, 2} else None


def decide_version(layers: list[tuple[int, tuple[int, int] | None]], label: int) -> tuple[int, str]:
    """The version that the symmetric layers show, or else the label's, and the sentence that says so."""
    votes: Counter[int] = Counter()
    for bits, stored in layers:
        middle = 1 << (bits - 1)
        if stored == (middle - 1, middle - 1):
            votes[1] += 1
        elif stored == (middle, middle):
            votes[2] += 1
    if len(votes) == 1:
        (shown,) = votes
        if shown != label:
            return (
                shown,
                f"zero points read as version {shown}, which the symmetric layers show; the label says version {label}",
            )
        return shown, ""
    return label, f"zero points read as version {label}, as the label says; no symmetric layer confirms it"


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
    groups = shape.k // shape.group
    wide = g_idx.long()
    if wide.shape != (shape.k,) or int(wide.min()) < 0 or int(wide.max()) >= groups:
        raise WeightError(f"{path}.g_idx", f"[{shape.k}] with values 0 .. {groups - 1}", f"{list(wide.shape)}, {_range(wide)}")
    if torch.equal(wide, torch.arange(shape.k, device=wide.device) // shape.group):
        return True
    if not bool((torch.bincount(wide, minlength=groups) == shape.group).all()):
        raise WeightError(f"{path}.g_idx", f"{shape.group} columns in every group", "groups of different sizes")
    return False


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


def _range(values: Tensor) -> str:
    return f"{int(values.min())} .. {int(values.max())}" if values.numel() else "empty"
