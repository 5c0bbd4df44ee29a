"""A folder of which one group has a scheme that no front door reads: that group is the library's, all others are packed."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.checkpoints import float_model, llama_config, token_ids
from torch._dynamo.exc import BackendCompilerFailed

import qcompile
from qcompile.errors import CheckpointError, UnsupportedSchemeError
from qcompile.frontends import prepare, prepared_notes
from qcompile.frontends.linear import ByteLinear, PackedLinear
from qcompile.frontends.quantize import _set_weight_parameters

CONFIG = llama_config(num_hidden_layers=1, vocab_size=32)
DOWN = "model.layers.0.mlp.down_proj"
KNOWN = ("FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "MXFP4", "MXFP8", "MXFP4XFP8", "W4AFP8")
UNKNOWN = ("MXFP6A16", "MXFP6A8", "W4A4")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")  # Dynamo about a cache of compressed-tensors


def mixed(folder: Path, preset: str) -> Path:
    """W4A16 everywhere but in down_proj, which has the preset's scheme; made by compressed-tensors."""
    library: Any = import_module("compressed_tensors.quantization")
    model = float_model(CONFIG)
    arguments = library.QuantizationArgs(num_bits=4, strategy="group", group_size=32, symmetric=True)
    first = library.QuantizationScheme(targets=["Linear"], weights=arguments, format="pack-quantized")
    second = library.preset_name_to_scheme(preset, ["re:.*down_proj"])
    if second.weights.strategy == "block":
        second.weights.block_structure = [32, 32]
    config = library.QuantizationConfig(config_groups={"a": first, "b": second}, ignore=["lm_head"])
    library.apply_quantization_config(model, config, show_progress=False)
    with torch.no_grad():
        for module in model.modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None:
                continue
            _set_weight_parameters(module)
            if hasattr(module, "input_global_scale"):
                module.input_global_scale.fill_(100.0)
            if hasattr(module, "input_scale"):
                module.input_scale.fill_(0.02)
    compressor = import_module("compressed_tensors.compressors").ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(token_ids(model.config)).logits
    return found


def from_pretrained(path: Path) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    return model.eval()


def served(model: Any) -> int:
    return sum(isinstance(module, PackedLinear | ByteLinear) for module in model.modules())


@pytest.mark.parametrize("preset", KNOWN)
def test_a_known_scheme_beside_another(preset: str, tmp_path: Path) -> None:
    path = mixed(tmp_path, preset)
    expected = logits(from_pretrained(path))
    for model in (qcompile.load(path), prepare(from_pretrained(path))):
        assert served(model) == 7 and not prepared_notes(model)
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("preset", UNKNOWN)
def test_loaded_and_prepared_give_the_librarys_numbers(preset: str, tmp_path: Path) -> None:
    path = mixed(tmp_path, preset)
    expected = logits(from_pretrained(path))
    for model in (qcompile.load(path), prepare(from_pretrained(path))):
        assert torch.equal(logits(model), expected)
        assert served(model) == 6
        notes = prepared_notes(model)
        assert list(notes) == [DOWN]
        assert notes[DOWN].startswith("scheme (")
        assert notes[DOWN].endswith("is not supported; made dense by compressed-tensors")


def test_a_more_specific_target_counts(tmp_path: Path) -> None:
    """As in compressed-tensors, a pattern counts before a class, though its group stands behind it."""
    path = mixed(tmp_path, "W8A8")
    model = qcompile.load(path)
    assert isinstance(model.get_submodule(DOWN), ByteLinear)
    assert torch.equal(logits(model), logits(from_pretrained(path)))


def test_the_report_has_a_row_with_the_reason(tmp_path: Path) -> None:
    model = qcompile.load(mixed(tmp_path, "MXFP6A16"))
    expected = logits(model)
    torch._dynamo.reset()
    compiled = qcompile.compile(model, rest="eager", measure=False)
    assert (logits(compiled) - expected).abs().max() < 0.05
    report = qcompile.report()
    assert len(report.served) == 6
    rows = [row for row in report.unserved if row.module == DOWN]
    assert len(rows) == 1
    assert "mxfp6" in rows[0].declined
    torch._dynamo.reset()
    with pytest.raises(BackendCompilerFailed, match=r"model\.layers\.0\.mlp\.down_proj: scheme"):
        logits(qcompile.compile(qcompile.load(tmp_path), rest="eager", measure=False, fallback="error"))


def test_a_quantized_cache_that_is_not_done_is_mentioned(tmp_path: Path) -> None:
    path = mixed(tmp_path, "W8A8")
    file = path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    file.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="kv_cache_scheme"):
        qcompile.load(path)


def test_what_such_a_layer_lacks_is_named(tmp_path: Path) -> None:
    path = mixed(tmp_path, "FP8_DYNAMIC")
    whole = load_file(path / "model.safetensors")
    for name in (f"{DOWN}.weight_scale", f"{DOWN}.weight"):
        (path / "model.safetensors").unlink()
        save_file(
            {key: value for key, value in whole.items() if key != name}, path / "model.safetensors", metadata={"format": "pt"}
        )
        with pytest.raises((CheckpointError, UnsupportedSchemeError), match=rf"{DOWN}"):
            qcompile.load(path)


def test_without_the_library_only_such_a_layer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mixed(tmp_path, "MXFP6A16")
    import sys  # noqa: PLC0415 - changed here only

    monkeypatch.setitem(sys.modules, "compressed_tensors.quantization", None)
    with pytest.raises(UnsupportedSchemeError, match=rf"{DOWN}: scheme .*Install compressed-tensors"):
        qcompile.load(path)
