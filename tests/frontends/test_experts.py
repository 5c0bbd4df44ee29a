"""Mixtures of experts load with their attention packed and their quantized experts dense and right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.checkpoints import awq_tensors, float_model, gptq_tensors, pack_words, round_to_nearest, token_ids
from torch import Tensor

import qcompile
from qcompile.frontends import prepared_notes
from qcompile.frontends.linear import GroupedLinear, PackedLinear

ENTRIES: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"},
    "gptq asymmetric act-order": {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "compressed-tensors asymmetric": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False},
            }
        },
    },
}


def quantized(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of one layer in that format, and its dense weight."""
    k = weight.shape[1]
    g_idx = torch.arange(k, dtype=torch.int32) // 32
    if "act-order" in name:
        g_idx = g_idx[torch.randperm(k, generator=torch.Generator().manual_seed(k))]
    codes, scales, zeros = round_to_nearest(weight, g_idx, 4, symmetric=name == "gptq")
    columns = g_idx.long()
    dense = (codes - zeros[:, columns]).to(scales.dtype) * scales[:, columns]
    if name == "awq":
        return awq_tensors(codes, scales, zeros), dense
    if name.startswith("gptq"):
        return gptq_tensors(codes, scales, zeros, g_idx, 4, v2=name != "gptq"), dense
    packed = {
        "weight_packed": pack_words(codes, 4),
        "weight_scale": scales,
        "weight_zero_point": pack_words(zeros.t(), 4).t().contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
    return packed, dense


def checkpoint(folder: Path, name: str) -> Any:
    """A Mixtral folder with every expert and attention layer quantized; returns the dense model of the same weights."""
    config = transformers.MixtralConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    float_model(config, torch.float16).save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors, dense = load_file(file), load_file(file)
    for key in [key for key in tensors if "experts" in key or "_proj" in key]:
        parts, dense[key] = quantized(name, tensors.pop(key))
        tensors |= {f"{key.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
    save_file(dense, file, metadata={"format": "pt"})
    expected: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    save_file(tensors, file, metadata={"format": "pt"})
    entry = json.loads((folder / "config.json").read_text()) | {"quantization_config": ENTRIES[name]}
    (folder / "config.json").write_text(json.dumps(entry))
    return expected.eval()


@pytest.mark.parametrize("name", ENTRIES)
def test_mixtral(name: str, tmp_path: Path) -> None:
    expected = checkpoint(tmp_path, name)
    model = qcompile.load(tmp_path)
    ids = token_ids(model.config)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)
    packed = [path for path, module in model.named_modules() if isinstance(module, GroupedLinear | PackedLinear)]
    assert len(packed) == 8
    notes = prepared_notes(model)
    experts = [path for path in notes if path.endswith("experts")]
    assert len(experts) == 2
    assert all(notes[path].startswith("12 quantized layers that transformers keeps in one tensor") for path in experts)
    assert torch.equal(model.model.layers[1].mlp.experts.down_proj, expected.model.layers[1].mlp.experts.down_proj)


def test_the_report_mentions_experts_and_a_wrong_label_does_not_matter(tmp_path: Path) -> None:
    expected = checkpoint(tmp_path, "gptq asymmetric act-order")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq"
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = qcompile.load(tmp_path)
    ids = token_ids(model.config)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)
        qcompile.compile(model, rest="eager", measure=False)(ids)
    rows = [row for row in qcompile.report().unserved if row.module.endswith("experts")]
    assert len(rows) == 2
    assert all("made dense while loading" in row.declined and "the label says version 1" in row.declined for row in rows)
