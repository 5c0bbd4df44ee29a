"""Small random checkpoints on disk, of real transformers classes, in every storage format that the project reads.

Import it in any test as `from support.checkpoints import ...` (pyproject puts `tests` on pytest's path). The packers here are
written down from the formats' descriptions, independently of qcompile's readers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qcompile.frontends.quantize import quantize

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds column 8 c + AWQ_ORDER[i]

ENCODERS = ("bert", "roberta")  # have a causal class too, but are not meant as one

LLAMA: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and the float model whose weights are the folder's weights dequantized (None where the library must say)."""

    path: Path
    dense: Any = None


def llama_config(**changes: Any) -> Any:
    """A Llama of two layers with hidden size 64; keyword arguments override its fields."""
    return transformers.LlamaConfig(**{**LLAMA, **changes})


def float_model(config: Any = None, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    """A randomly initialised model of that config: causal if there is such a class and it is no BERT, otherwise AutoModel.

    config: None means `llama_config()`; a model is returned as it is.
    """
    if isinstance(config, nn.Module):
        return config
    config = config or llama_config()
    torch.manual_seed(seed)
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and config.model_type not in ENCODERS
    factory: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    return factory.from_config(config, dtype=dtype).eval()


def compressed_tensors_folder(
    folder: Path, config: Any = None, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **scheme: Any
) -> Checkpoint:
    """A folder quantized and saved by compressed-tensors; `scheme` as qcompile.frontends.quantize.quantize takes it."""
    model = float_model(config, dtype, seed)
    if scheme.get("activations") == "static" and "samples" not in scheme:
        scheme["samples"] = [{"input_ids": token_ids(model.config)}]
    return Checkpoint(quantize(model, folder, **scheme))


def token_ids(config: Any, batch: int = 2, length: int = 8, seed: int = 1) -> Tensor:
    """Random token ids [batch, length] of the config's vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, config.vocab_size, (batch, length), generator=generator)


def gptq_folder(
    folder: Path,
    config: Any = None,
    *,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    act_order: bool = False,
    v2: bool = False,
    label: str | None = None,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    ignore: tuple[str, ...] = ("lm_head",),
) -> Checkpoint:
    """A GPTQ folder: every Linear or Conv1D as qweight, qzeros, scales, g_idx (and its bias).

    group -1: one group. v2: stored zero points are the true ones (v1 stores one less). label: what config.json claims as
    checkpoint_format, by default the truth.
    """
    model = float_model(config, dtype, seed)
    tensors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for name, module in _linears(model, ignore):
        weight = matrix(module)
        k = weight.shape[1]
        size = k if group == -1 else group
        columns = torch.randperm(k, generator=generator) if act_order else torch.arange(k)
        g_idx = torch.empty(k, dtype=torch.int32)
        g_idx[columns] = torch.arange(k, dtype=torch.int32) // size
        codes, scales, zeros = round_to_nearest(weight, g_idx, bits, symmetric)
        tensors |= {f"{name}.{part}": value for part, value in gptq_tensors(codes, scales, zeros, g_idx, bits, v2).items()}
        _set_dense(module, codes, scales, zeros, g_idx)
    entry = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": act_order,
        "sym": symmetric,
        "checkpoint_format": label or ("gptq_v2" if v2 else "gptq"),
    }
    return _save(model, Path(folder), tensors, entry)


def awq_folder(
    folder: Path,
    config: Any = None,
    *,
    group: int = 32,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    ignore: tuple[str, ...] = ("lm_head",),
) -> Checkpoint:
    """An AWQ folder of the gemm version: every Linear as qweight, qzeros, scales (and its bias), 4 bits, asymmetric."""
    model = float_model(config, dtype, seed)
    tensors: dict[str, Tensor] = {}
    for name, module in _linears(model, ignore):
        weight = matrix(module)
        g_idx = torch.arange(weight.shape[1], dtype=torch.int32) // group
        codes, scales, zeros = round_to_nearest(weight, g_idx, 4, symmetric=False)
        tensors |= {f"{name}.{part}": value for part, value in awq_tensors(codes, scales, zeros).items()}
        _set_dense(module, codes, scales, zeros, g_idx)
    entry = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return _save(model, Path(folder), tensors, entry)


def round_to_nearest(weight: Tensor, g_idx: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Unsigned codes [N, K] int32, scales [N, G] in the weight's dtype, zero points [N, G] int32 (1 .. 2^bits - 1)."""
    n, _ = weight.shape
    groups = int(g_idx.max()) + 1
    wide, top = weight.float(), (1 << bits) - 1
    scales, zeros = torch.empty(n, groups), torch.empty(n, groups, dtype=torch.int32)
    for index in range(groups):
        part = wide[:, g_idx == index]
        least, most = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if symmetric:
            scales[:, index] = torch.maximum(-least, most) / (top / 2)
            zeros[:, index] = 1 << (bits - 1)
        else:
            scales[:, index] = (most - least) / top
            zeros[:, index] = torch.round(-least / scales[:, index]).clamp(1, top).int()
    scales = scales.to(weight.dtype)
    columns = g_idx.long()
    codes = (torch.round(wide / scales.float()[:, columns]) + zeros[:, columns]).clamp(0, top).int()
    return codes, scales, zeros


def pack_words(values: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """int32 [R, C] of unsigned codes -> int32 [R, C * bits / 32], lowest bits first (element order[i] at place i)."""
    per_word = 32 // bits
    places = order or tuple(range(per_word))
    grouped = values.long().reshape(values.shape[0], -1, per_word)
    word = torch.zeros(grouped.shape[:2], dtype=torch.int64)
    for place, element in enumerate(places):
        word |= grouped[:, :, element] << (bits * place)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).to(torch.int32)


def gptq_tensors(codes: Tensor, scales: Tensor, zeros: Tensor, g_idx: Tensor, bits: int, v2: bool) -> dict[str, Tensor]:
    """GPTQ's four tensors of one layer: qweight [K b / 32, N], qzeros [G, N b / 32], scales [G, N], g_idx [K]."""
    stored = zeros if v2 else (zeros - 1) & ((1 << bits) - 1)
    return {
        "qweight": pack_words(codes, bits).t().contiguous(),
        "qzeros": pack_words(stored.t(), bits).contiguous(),
        "scales": scales.t().contiguous(),
        "g_idx": g_idx.to(torch.int32),
    }


def awq_tensors(codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
    """AWQ's three tensors of one layer: qweight [K, N / 8], qzeros [G, N / 8], scales [G, N]."""
    return {
        "qweight": pack_words(codes.t(), 4, AWQ_ORDER).contiguous(),
        "qzeros": pack_words(zeros.t(), 4, AWQ_ORDER).contiguous(),
        "scales": scales.t().contiguous(),
    }


def matrix(module: Any) -> Tensor:
    """The weight as [N, K]; Conv1D has it the other way round."""
    weight: Tensor = module.weight.data
    return weight.t() if isinstance(module, Conv1D) else weight


def _linears(model: nn.Module, ignore: tuple[str, ...]) -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(part in name for part in ignore)
    ]


def _set_dense(module: Any, codes: Tensor, scales: Tensor, zeros: Tensor, g_idx: Tensor) -> None:
    columns = g_idx.long()
    difference = (codes - zeros[:, columns]).to(scales.dtype)
    dense = difference * scales[:, columns]
    module.weight.data = dense.t().contiguous() if isinstance(module, Conv1D) else dense


def _save(model: Any, folder: Path, tensors: dict[str, Tensor], entry: dict[str, Any]) -> Checkpoint:
    dense = {name: value.contiguous() for name, value in model.state_dict().items()}
    replaced = {name.rpartition(".")[0] + ".weight" for name in tensors}
    kept = {name: value for name, value in dense.items() if name not in replaced}
    model.save_pretrained(folder, state_dict=kept)
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    weights = folder / "model.safetensors"
    save_file({**load_file(weights), **tensors}, weights, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = entry
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return Checkpoint(folder, model)
