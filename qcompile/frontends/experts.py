"""Quantized layers that transformers merges into one tensor (experts of a mixture) are dequantized while they are read.

Such tensors have no Linear of their own that could stay packed, so they are left right: dense, as transformers' route does.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps

from qcompile.errors import UnsupportedSchemeError, WeightError
from qcompile.frontends.checkpoint_schemes import scheme_of
from qcompile.frontends.ops import dequantize_packed
from qcompile.frontends.product import Structure
from qcompile.readers.layouts import NVFP4_BLOCK, unpack_words

Parts = dict[str, Tensor]


class DequantizeMerged(ConversionOps):
    """Packed tensors per expert in, dense ones per expert out, before transformers stacks them."""

    def __init__(self, hf_quantizer: Any) -> None:
        self.entry: dict[str, Any] = hf_quantizer.quantization_config.entry

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], *_: Any, full_layer_name: str = "", model: Any = None, **__: Any
    ) -> dict[str, Any]:
        dtype = model.get_parameter(full_layer_name).dtype
        layers: dict[str, dict[str, list[Tensor]]] = {}
        for pattern, tensors in input_dict.items():
            stem, _dot, part = pattern.rpartition(".")
            layers.setdefault(stem, {})[part] = tensors if isinstance(tensors, list) else [tensors]
        result: dict[str, Any] = {}
        for stem, parts in layers.items():
            count = max(len(tensors) for tensors in parts.values())
            each = [{part: tensors[index] for part, tensors in parts.items() if tensors} for index in range(count)]
            result[f"{stem}.weight"] = [self.dense(one, full_layer_name).to(dtype) for one in each]
        return result

    @property
    def reverse_op(self) -> ConversionOps:
        raise NotImplementedError("merged layers were dequantized while loading and cannot be saved packed")

    def dense(self, parts: Parts, path: str) -> Tensor:
        """One expert's weight [N, K]; a weight that is not quantized is returned as it is."""
        if "qweight" in parts:
            return _grouped(parts, self.entry, path)
        if "weight_scale" in parts:
            return _compressed(parts, self.entry, path)
        return parts["weight"]


def _grouped(parts: Parts, entry: Mapping[str, Any], path: str) -> Tensor:
    qweight, scales, qzeros, g_idx = parts["qweight"], parts["scales"], parts.get("qzeros"), parts.get("g_idx")
    groups, n = scales.shape
    if entry["quant_method"] == "awq":
        k = qweight.shape[0]
        return _weight(qweight, scales, qzeros, None, Structure("awq", 4, k // groups, n, k))
    bits = int(entry.get("bits", 4))
    k, middle = qweight.shape[0] * 32 // bits, 1 << (bits - 1)
    layout = "gptq_v2" if entry.get("checkpoint_format") == "gptq_v2" else "gptq"
    if qzeros is not None:
        least, most = (int(value) for value in torch.aminmax(unpack_words(qzeros, bits, groups, n)))
        if least == most and least in {middle - 1, middle}:
            qzeros = None  # symmetric, whichever version wrote it
    if k % groups or (g_idx is not None and (int(g_idx.min()) < 0 or int(g_idx.max()) >= groups)):
        raise WeightError(f"{path}: scales and g_idx", f"groups that divide K={k}", f"{groups} groups")
    return _weight(qweight, scales, qzeros, g_idx, Structure(layout, bits, k // groups, n, k))


def _compressed(parts: Parts, entry: Mapping[str, Any], path: str) -> Tensor:
    weights, scale, zeros = scheme_of(entry, path).weights, parts["weight_scale"], parts.get("weight_zero_point")
    if "weight_packed" not in parts:
        stored = parts["weight"]
        if stored.dtype != torch.int8:
            raise UnsupportedSchemeError(
                path, f"experts stored as {stored.dtype}", ["int8 and packed integers"], "Load them dense."
            )
        n, k = stored.shape
        group = k // (scale.shape[1] if scale.dim() == 2 else 1)
        return _weight(stored, scale, zeros, None, Structure("ct_int8", weights.num_bits, group, n, k))
    packed = parts["weight_packed"]
    n = packed.shape[0]
    if "weight_global_scale" in parts:
        structure = Structure("nvfp4", 4, NVFP4_BLOCK, n, packed.shape[1] * 2)
        return _weight(packed, scale, parts["weight_global_scale"], None, structure)
    k = int(parts["weight_shape"][1]) if "weight_shape" in parts else packed.shape[1] * 32 // weights.num_bits
    group = int(weights.group_size) if weights.strategy == "group" else k
    if k % group or tuple(scale.shape) != (n, k // group):
        raise WeightError(f"{path}: weight_scale", str([n, k // group]), str(list(scale.shape)))
    return _weight(packed, scale, zeros, parts.get("weight_g_idx"), Structure("ct_pack", weights.num_bits, group, n, k))


def _weight(packed: Tensor, scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, structure: Structure) -> Tensor:
    layout, bits, group, n, k, _ = structure
    dtype = torch.float32 if layout == "nvfp4" else scales.dtype
    found: Tensor = dequantize_packed(packed, scales, zeros, g_idx, layout, bits, group, n, k, dtype)
    return found
