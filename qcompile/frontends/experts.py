"""Quantized layers that transformers merges into one tensor (experts of a mixture) are dequantized while they are read.

Such tensors have no Linear of their own that could stay packed, so they are left right: dense, as transformers' route does. The
report has a row for each module that holds them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from qcompile.errors import QCompileError, UnsupportedSchemeError, WeightError
from qcompile.formats.layouts import LAYOUTS, MX_BLOCK, NVFP4_BLOCK
from qcompile.formats.words import unpack_words
from qcompile.frontends.checkpoint_schemes import scheme_of
from qcompile.frontends.notes import Declined
from qcompile.frontends.session import Session, current
from qcompile.frontends.stored_checks import Checks, need_finite, need_groups
from qcompile.frontends.transformers_internals import ConversionOps
from qcompile.frontends.zero_convention import Evidence, channels, decide, evidence
from qcompile.operators import Structure, dense_weight

Parts = dict[str, Tensor]
# Of how many layers the zero-point convention is asked.
_ASKED = 32


class DequantizeMerged(ConversionOps):
    """Packed tensors per expert in, dense ones per expert out, before transformers stacks them."""

    def __init__(self, hf_quantizer: Any) -> None:
        self.entry: dict[str, Any] = hf_quantizer.quantization_config.entry

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], *_: Any, full_layer_name: str = "", model: Any = None, **__: Any
    ) -> dict[str, Any]:
        try:
            return self._converted(input_dict, full_layer_name, model.get_parameter(full_layer_name).dtype)
        except QCompileError as error:
            # transformers logs what goes wrong in here and raises something else; load raises this.
            session = current()
            session.problem = session.problem or (session.error(error) if isinstance(error, WeightError) else error)
            raise

    def _converted(self, input_dict: dict[str, Any], name: str, dtype: torch.dtype) -> dict[str, Any]:
        layers: dict[str, dict[str, list[Tensor]]] = {}
        for pattern, tensors in input_dict.items():
            stem, _dot, part = pattern.rpartition(".")
            layers.setdefault(stem, {})[part] = tensors if isinstance(tensors, list) else [tensors]
        result: dict[str, Any] = {}
        for stem, parts in layers.items():
            count = max(len(tensors) for tensors in parts.values())
            each = [{part: tensors[index] for part, tensors in parts.items() if tensors} for index in range(count)]
            result[f"{stem}.weight"] = [self.dense(one, name).to(dtype) for one in each]
            if any(part in {"qweight", "weight_scale"} for part in parts):
                merged, path = current().merged, name.rpartition(".")[0]
                merged[path] = merged.get(path, 0) + count
        return result

    @property
    def reverse_op(self) -> ConversionOps:
        raise NotImplementedError("merged layers were dequantized while loading and cannot be saved packed")

    def dense(self, parts: Parts, path: str) -> Tensor:
        """One expert's weight [N, K]; a weight that is not quantized is returned as it is."""
        if "qweight" in parts:
            need_finite(f"{path}: scales", parts["scales"])
            return _grouped(parts, self.entry, path)
        if "weight_scale" in parts:
            need_finite(f"{path}: weight_scale", parts["weight_scale"])
            return _compressed(parts, self.entry, path)
        return parts["weight"]


def declined(count: int, session: Session) -> Declined:
    """What the report says about a module that holds so many layers that were quantized."""
    entry = session.entry or {}
    why = f"{count} quantized layers that transformers keeps in one tensor, for which there is no kernel: made dense while loading"
    if session.version_note:
        why = f"{why}; {session.version_note}"
    return Declined(why, str(entry["quant_method"]))


def version_of_merged(merged: Mapping[str, list[str]], session: Session) -> None:
    """Decide GPTQ's zero-point convention from some of the merged layers' files."""
    entry = session.entry or {}
    if entry.get("quant_method") != "gptq":
        return
    bits, stems = int(entry["bits"]), [stem for found in merged.values() for stem in found]
    seen = [_evidence(stem, bits, session) for stem in stems[:: max(1, len(stems) // _ASKED)][:_ASKED]]
    label = 2 if entry.get("checkpoint_format") == "gptq_v2" else 1
    session.version, session.version_note = decide(seen, label)


def _evidence(stem: str, bits: int, session: Session) -> Evidence:
    found: Parts = {}
    for part in ("qweight", "qzeros", "g_idx"):
        tensor = session.headers.get(f"{stem}.{part}")
        if tensor is not None:
            with safe_open(tensor.file, framework="pt") as file:
                found[part] = file.get_tensor(f"{stem}.{part}")
    qzeros, groups = found.get("qzeros"), session.headers[f"{stem}.scales"].shape[0]
    if qzeros is None:
        return Evidence(bits, None)
    n, k = found["qweight"].shape[1], found["qweight"].shape[0] * 32 // bits
    zeros = unpack_words(qzeros, bits, groups, n)
    chosen = channels(n, k)
    codes = unpack_words(found["qweight"].index_select(1, chosen).t(), bits, len(chosen), k)
    columns = found["g_idx"].long() if "g_idx" in found else torch.arange(k, device="cpu", dtype=torch.int64) * groups // k
    least, most = torch.aminmax(zeros)
    return evidence(bits, (int(least), int(most)), codes, zeros.index_select(1, chosen).t(), columns.clamp(0, groups - 1))


def _grouped(parts: Parts, entry: Mapping[str, Any], path: str) -> Tensor:
    qweight, scales, qzeros, g_idx = parts["qweight"], parts["scales"], parts.get("qzeros"), parts.get("g_idx")
    groups, n = scales.shape
    if entry["quant_method"] == "awq":
        k = qweight.shape[0]
        return _weight(qweight, scales, qzeros, None, Structure("awq", 4, k // groups, n, k))
    bits = int(entry.get("bits", 4))
    k, middle = qweight.shape[0] * 32 // bits, 1 << (bits - 1)
    layout = "gptq_v2" if current().version == 2 else "gptq"
    if qzeros is not None:
        least, most = (int(value) for value in torch.aminmax(unpack_words(qzeros, bits, groups, n)))
        if least == most and least in {middle - 1, middle}:
            qzeros = None  # symmetric, whichever version wrote it
    if k % groups:
        raise WeightError(f"{path}: scales", f"groups that divide K={k}", f"{groups} groups")
    if g_idx is not None:
        need_groups(f"{path}: g_idx", g_idx, k, k // groups)
    return _weight(qweight, scales, qzeros, g_idx, Structure(layout, bits, k // groups, n, k))


def _compressed(parts: Parts, entry: Mapping[str, Any], path: str) -> Tensor:
    scheme, scale = scheme_of(entry, path), parts["weight_scale"]
    weights = scheme.weights
    zeros = None if weights.symmetric else parts.get("weight_zero_point")
    if "weight_packed" not in parts:
        return _bytes(path, parts["weight"], scale, zeros, weights.num_bits)
    packed = parts["weight_packed"]
    n = packed.shape[0]
    if "weight_global_scale" in parts:
        need_finite(f"{path}: weight_global_scale", parts["weight_global_scale"], positive=True)
        structure = Structure("nvfp4", 4, NVFP4_BLOCK, n, packed.shape[1] * 2)
        return _weight(packed, scale, parts["weight_global_scale"], None, structure)
    if scheme.format == "mxfp4-pack-quantized":
        checks = Checks(path, n, packed.shape[1] * 2, parts)
        checks.tensor("weight_scale", torch.uint8, (n, checks.k // MX_BLOCK))
        return _weight(packed, scale, None, None, Structure("mxfp4", 4, MX_BLOCK, n, checks.k))
    k = int(parts["weight_shape"][1]) if "weight_shape" in parts else packed.shape[1] * 32 // weights.num_bits
    group = int(weights.group_size) if weights.strategy == "group" else k
    checks = Checks(path, n, k, parts)
    checks.divides(group)
    checks.tensor("weight_packed", torch.int32, (n, -(-k * weights.num_bits // 32)))
    checks.tensor("weight_scale", None, (n, k // group))
    g_idx = None if checks.unordered(group) else parts.get("weight_g_idx")
    return _weight(packed, scale, zeros, g_idx, Structure("ct_pack", weights.num_bits, group, n, k))


def _bytes(path: str, stored: Tensor, scale: Tensor, zeros: Tensor | None, bits: int) -> Tensor:
    """Codes of one byte: int8, or float8 with a scale for the tensor, each channel, or each group of columns."""
    n, k = stored.shape
    groups = scale.shape[1] if scale.dim() == 2 else 1
    if stored.dtype not in (torch.int8, torch.float8_e4m3fn) or groups == 0 or k % groups or scale.numel() not in {1, n * groups}:
        known = ["int8, float8_e4m3fn and packed integers, with scales by tensor, channel or group"]
        what = f"experts stored as {stored.dtype} with scales {list(scale.shape)}"
        raise UnsupportedSchemeError(path, what, known, "Load them dense.")
    if stored.dtype == torch.int8:
        return _weight(stored, scale, zeros, None, Structure("ct_int8", bits, k // groups, n, k))
    wide = stored.to(torch.float32).reshape(n, groups, -1) * scale.to(torch.float32).reshape(-1, groups, 1)
    return wide.reshape(n, k)


def _weight(packed: Tensor, scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, structure: Structure) -> Tensor:
    dtype = torch.float32 if LAYOUTS[structure.layout].codebook else scales.dtype
    return dense_weight(structure, packed, scales, zeros, g_idx, dtype)
