"""qcompile.load gives the numbers of the library (or of the dense model) for every format, with nothing but transformers."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.checkpoints import (
    Checkpoint,
    awq_folder,
    compressed_tensors_folder,
    float_model,
    gptq_folder,
    llama_config,
    token_ids,
)

import qcompile
from qcompile.errors import UnsupportedSchemeError, WeightError
from qcompile.frontends import prepared_notes
from qcompile.frontends.linear import ByteLinear, GroupedLinear, PackedLinear
from qcompile.frontends.zero_points import loading_asymmetric

PACKED = (PackedLinear, ByteLinear, GroupedLinear)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(token_ids(model.config)).logits
    return found


def packed_layers(model: Any) -> int:
    return sum(isinstance(module, PACKED) for module in model.modules())


@pytest.mark.parametrize(
    "scheme",
    [
        {"group": 32},
        {"group": 32, "symmetric": False},
        {"group": None, "symmetric": False},
        {"bits": 8, "group": None, "activations": "dynamic"},
        {"bits": 8, "group": None, "activations": "static", "symmetric_activations": False},
        {"format": "nvfp4-pack-quantized"},
        {"format": "mxfp4-pack-quantized"},
        {"format": "mxfp8-quantized"},
        {"format": "float-quantized"},
        {"format": "float-quantized", "block": (48, 40)},
    ],
    ids=str,
)
def test_compressed_tensors_folders(scheme: dict[str, Any], tmp_path: Path) -> None:
    path = compressed_tensors_folder(tmp_path, **scheme).path
    model = qcompile.load(path)
    with loading_asymmetric():
        expected: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    assert torch.equal(logits(model), logits(expected.eval()))
    assert packed_layers(model) == 14
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert model.generation_config is not None


@pytest.mark.parametrize(
    "scheme",
    [
        {},
        {"act_order": True},
        {"symmetric": False},
        {"symmetric": False, "act_order": True, "v2": True},
        {"v2": True, "label": "gptq"},
        {"bits": 8, "symmetric": False},
        {"bits": 2, "group": -1},
    ],
    ids=str,
)
def test_gptq_folders(scheme: dict[str, Any], tmp_path: Path) -> None:
    saved = gptq_folder(tmp_path, **scheme)
    model = qcompile.load(saved.path)
    assert torch.equal(logits(model), logits(saved.dense))
    assert packed_layers(model) == 14
    assert ("the label says version 1" in str(prepared_notes(model))) == ("label" in scheme)


def test_awq_folders(tmp_path: Path) -> None:
    saved = awq_folder(tmp_path)
    model = qcompile.load(saved.path)
    assert torch.equal(logits(model), logits(saved.dense))
    assert packed_layers(model) == 14


def test_biases_tied_weights_and_another_dtype(tmp_path: Path) -> None:
    config = transformers.Qwen2Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    saved = gptq_folder(tmp_path, config)
    model = qcompile.load(saved.path)
    assert torch.equal(logits(model), logits(saved.dense))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    wide = qcompile.load(saved.path, dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert wide.model.layers[0].self_attn.q_proj.scales.dtype == torch.float16
    assert (logits(wide) - logits(saved.dense.float())).abs().max() < 1e-5


def test_an_encoder_decoder(tmp_path: Path) -> None:
    """T5 looks at `wo.weight.dtype`; compressed-tensors' own loading of it fails there."""
    sizes: dict[str, Any] = {
        "vocab_size": 128,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 1,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    made: Any = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    source = made.bfloat16().eval()
    saved = gptq_folder(tmp_path, source)
    model = qcompile.load(saved.path)
    ids = token_ids(model.config)
    with torch.no_grad():
        found = model(input_ids=ids, decoder_input_ids=ids).logits
        expected = saved.dense(input_ids=ids, decoder_input_ids=ids).logits
    assert torch.equal(found, expected)
    layer = "encoder.block.0.layer.1.DenseReluDense.wo"
    assert torch.equal(model.get_submodule(layer).weight, saved.dense.get_submodule(layer).weight)


def test_several_files_and_the_base_model(tmp_path: Path) -> None:
    saved = gptq_folder(tmp_path)
    split(saved)
    assert torch.equal(logits(qcompile.load(saved.path)), logits(saved.dense))
    base = qcompile.load(saved.path, model_class=transformers.LlamaModel)
    ids = token_ids(base.config)
    with torch.no_grad():
        assert torch.equal(base(ids).last_hidden_state, saved.dense.model(ids).last_hidden_state)
    assert packed_layers(base) == 14


def split(saved: Checkpoint) -> None:
    """Distribute the folder's tensors over three files with an index."""
    whole = saved.path / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    index: dict[str, str] = {}
    for number in range(3):
        name = f"model-{number + 1:05d}-of-00003.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::3]}
        save_file(part, saved.path / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (saved.path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_what_was_loaded_can_be_saved_and_loaded_again(tmp_path: Path) -> None:
    saved = gptq_folder(tmp_path / "first", act_order=True)
    model = qcompile.load(saved.path)
    model.save_pretrained(tmp_path / "second")
    assert torch.equal(logits(qcompile.load(tmp_path / "second")), logits(saved.dense))


def test_a_folder_that_is_not_quantized_loads_as_it_is(tmp_path: Path) -> None:
    model = float_model()
    model.save_pretrained(tmp_path)
    loaded = qcompile.load(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert packed_layers(loaded) == 0


def test_the_libraries_are_not_needed(tmp_path: Path) -> None:
    path = compressed_tensors_folder(tmp_path, group=32, symmetric=False).path
    program = f"""
        import sys
        for name in ("compressed_tensors", "gptqmodel", "auto_gptq", "awq"):
            sys.modules[name] = None
        import torch, qcompile
        model = qcompile.load({str(path)!r})
        with torch.no_grad():
            assert torch.isfinite(model(torch.arange(8)[None]).logits).all()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120)


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] |= changes
    (path / "config.json").write_text(json.dumps(config))


def edit_tensors(path: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(path / "model.safetensors")
    for key in [key for key in tensors if key.endswith(name)]:
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_an_unknown_method_lists_the_known_ones(tmp_path: Path) -> None:
    path = gptq_folder(tmp_path).path
    edit_config(path, quant_method="fbgemm_fp8")
    with pytest.raises(UnsupportedSchemeError, match=r"quant_method 'fbgemm_fp8'.*'awq'.*'compressed-tensors'.*'gptq'"):
        qcompile.load(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "layers.1.mlp.up_proj.scales",
            torch.ones(3, 128).half(),
            r"layers\.1\.mlp\.up_proj\.scales: expected .* \[2, 128\] .*got torch.float16 \[3, 128\]",
        ),
        (
            "layers.1.mlp.up_proj.g_idx",
            torch.full((64,), 9, dtype=torch.int32),
            r"up_proj\.g_idx: expected \[64\] with values 0",
        ),
        ("layers.1.mlp.up_proj.qzeros", torch.zeros(1, 16, dtype=torch.int32), r"up_proj"),
    ],
)
def test_contradictory_files_are_named(name: str, value: torch.Tensor, message: str, tmp_path: Path) -> None:
    path = gptq_folder(tmp_path, symmetric=False).path
    edit_tensors(path, name, value)
    with pytest.raises((WeightError, UnsupportedSchemeError), match=message):
        qcompile.load(path)


def test_a_missing_scale_is_named(tmp_path: Path) -> None:
    path = compressed_tensors_folder(tmp_path, llama_config(), group=32).path
    edit_tensors(path, "layers.0.mlp.up_proj.weight_scale", None)
    with pytest.raises(WeightError, match=r"layers\.0\.mlp\.up_proj\.weight_scale: .* got nothing"):
        qcompile.load(path)
