"""A prepared model gives the library's own decompressed numbers bit by bit, in one graph, for every scheme and kind of model."""

import copy
import re
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import compressed_tensors_folder, float_model, llama_config, token_ids
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.testing import CompileCounter

import qcompile
from qcompile.errors import LostWeightError
from qcompile.frontends import prepare, prepared_notes
from qcompile.frontends.linear import ByteLinear, PackedLinear
from qcompile.frontends.zero_points import loading_asymmetric
from qcompile.meaning import sqnr_db

SCHEMES: dict[str, dict[str, Any]] = {
    "W4A16 g32": {"group": 32},
    "W4A16 g64": {"group": 64},
    "W4A16 channel": {"group": None},
    "W4A16 g32 asymmetric": {"group": 32, "symmetric": False},
    "W4A16 channel asymmetric": {"group": None, "symmetric": False},
    "W3A16 g32 asymmetric": {"bits": 3, "group": 32, "symmetric": False},
    "W8A16 g32": {"bits": 8, "group": 32},
    "W8A16 g32 asymmetric": {"bits": 8, "group": 32, "symmetric": False},
    "int8 weights only": {"bits": 8, "group": None, "format": "int-quantized"},
    "W8A8 dynamic": {"bits": 8, "group": None, "activations": "dynamic"},
    "W8A8 dynamic asymmetric": {"bits": 8, "group": None, "activations": "dynamic", "symmetric_activations": False},
    "W8A8 static": {"bits": 8, "group": None, "activations": "static"},
    "W8A8 static asymmetric": {"bits": 8, "group": None, "activations": "static", "symmetric_activations": False},
    "W8A8 asymmetric weights": {"bits": 8, "group": None, "symmetric": False, "activations": "dynamic"},
    "NVFP4A16": {"format": "nvfp4-pack-quantized"},
    "MXFP4A16": {"format": "mxfp4-pack-quantized"},
    "MXFP8A16": {"format": "mxfp8-quantized"},
    "FP8 per channel": {"format": "float-quantized"},
    "FP8 blocks": {"format": "float-quantized", "block": (128, 128)},
    "FP8 blocks of 48 and 40": {"format": "float-quantized", "block": (48, 40)},
}

EVERYWHERE = ("W4A16 g32 asymmetric", "W8A8 dynamic")


def bert() -> Any:
    return transformers.BertConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": llama_config,
    "qwen3": lambda: transformers.Qwen3Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=128,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        word_embed_proj_dim=64,
    ),
    "bert": bert,
}


def from_pretrained(path: Path, **kw: Any) -> Any:
    """As the library loads it; asymmetric checkpoints with the mended shape."""
    config: Any = transformers.AutoConfig.from_pretrained(path)
    factory: Any = getattr(transformers, config.architectures[0])
    with loading_asymmetric():
        return factory.from_pretrained(path, dtype=torch.bfloat16, **kw).eval()


def output(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits, or the last hidden state of an encoder."""
    with torch.no_grad():
        result = model(ids)
    found: torch.Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return found


def test_names_and_hook(tmp_path: Path) -> None:
    model = from_pretrained(compressed_tensors_folder(tmp_path, group=32).path)
    names = list(model.state_dict())
    assert prepare(model) is model
    assert list(model.state_dict()) == names
    assert not hasattr(model, "ct_decompress_hook")
    assert sum(isinstance(module, PackedLinear | ByteLinear) for module in model.modules()) == 14
    assert not prepared_notes(model)


# Every scheme on a Llama, two of them on the other kinds of model.
PAIRS = [("llama", scheme) for scheme in SCHEMES] + [(kind, scheme) for kind in CONFIGS for scheme in EVERYWHERE if kind != "llama"]


@pytest.mark.parametrize(("kind", "scheme"), PAIRS)
def test_one_graph_and_the_right_numbers(kind: str, scheme: str, tmp_path: Path) -> None:
    path = compressed_tensors_folder(tmp_path, CONFIGS[kind](), **SCHEMES[scheme]).path
    expected, model = from_pretrained(path), prepare(from_pretrained(path))
    ids = token_ids(model.config)
    theirs, ours = output(expected, ids), output(model, ids)
    if (kind, scheme) == ("opt", "W8A8 dynamic"):
        # OPT flattens tokens into a matrix; there the library's "per token" scale is one for the whole matrix, ours is per token.
        assert sqnr_db(theirs, ours) > 25
    else:
        assert torch.equal(ours, theirs)
    torch._dynamo.reset()
    counter = CompileCounter()
    result = output(torch.compile(model, backend=counter, fullgraph=True), ids)
    assert counter.frame_count == 1
    assert torch.equal(result, ours)


def test_prepare_twice_changes_nothing(tmp_path: Path) -> None:
    model = prepare(from_pretrained(compressed_tensors_folder(tmp_path, group=32).path))
    before = {name: type(module) for name, module in model.named_modules()}
    prepare(model)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_a_model_that_was_never_quantized_is_returned_unchanged() -> None:
    model = float_model()
    before = {name: (type(module), module.forward) for name, module in model.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(model) is model
    assert {name: (type(module), module.forward) for name, module in model.named_modules()} == before


def test_after_the_first_forward_it_says_so_and_the_way_out(tmp_path: Path) -> None:
    model = from_pretrained(compressed_tensors_folder(tmp_path, group=32).path)
    ids = token_ids(model.config)
    dense = output(model, ids)
    with pytest.warns(UserWarning, match=r"14 quantized layers .*q_proj.*before its first forward.*qcompile\.load"):
        prepare(model)
    assert torch.equal(output(model, ids), dense)


def test_a_part_can_be_prepared_alone(tmp_path: Path) -> None:
    """The hook that stays on the parent must not decompress what is prepared."""
    path = compressed_tensors_folder(tmp_path, group=32).path
    model, expected = from_pretrained(path), from_pretrained(path)
    prepare(model.model)
    ids = token_ids(model.config)
    assert torch.equal(output(model, ids), output(expected, ids))
    assert isinstance(model.model.layers[0].self_attn.q_proj, PackedLinear)


def test_deepcopy_and_state_dict_survive(tmp_path: Path) -> None:
    model = prepare(from_pretrained(compressed_tensors_folder(tmp_path, group=32).path))
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    ids = token_ids(model.config)
    assert torch.equal(output(model, ids), output(twin, ids))


def test_a_quantized_embedding_is_left_right(tmp_path: Path) -> None:
    model = from_pretrained(compressed_tensors_folder(tmp_path, group=32).path)
    expected = from_pretrained(tmp_path)
    for each in (model, expected):
        scheme = each.model.layers[0].self_attn.q_proj.quantization_scheme
        embedding = each.model.embed_tokens
        embedding.quantization_scheme = copy.deepcopy(scheme)
        weight = embedding.weight.detach().reshape(-1, 2, 32)
        scale = weight.abs().amax(-1) / 7.5
        embedding.register_parameter("weight_scale", nn.Parameter(scale, requires_grad=False))
        import_module("compressed_tensors.compressors").compress_module(embedding)
    prepare(model)
    ids = token_ids(model.config)
    assert torch.equal(output(model, ids), output(expected, ids))
    assert prepared_notes(model) == {"model.embed_tokens": "quantized, but no Linear: decompressed to dense"}


def test_code_that_reads_weight_gets_the_dense_one(tmp_path: Path) -> None:
    path = compressed_tensors_folder(tmp_path, group=32).path
    expected, model = from_pretrained(path), prepare(from_pretrained(path))
    output(expected, token_ids(model.config))  # decompresses it
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, expected.model.layers[1].mlp.up_proj.weight)


# --- what is not known, or contradicts itself -----------------------------------------------------------------------------------


UNKNOWN = {
    "W4AFP8": "nvfp4-pack-quantized",
    "MXFP6A16": "mxfp6-pack-quantized",
    "W4A4": "pack-quantized",
}


@pytest.mark.parametrize("preset", UNKNOWN)
def test_a_layer_of_an_unknown_scheme_is_left_to_the_library_and_the_others_are_served(preset: str, tmp_path: Path) -> None:
    model = from_pretrained(compressed_tensors_folder(tmp_path, group=32).path)
    linear = model.model.layers[1].mlp.up_proj
    scheme = import_module("compressed_tensors.quantization").preset_name_to_scheme(preset, ["Linear"])
    scheme.format = UNKNOWN[preset]
    linear.quantization_scheme = scheme
    prepare(model)
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 13
    assert type(linear) is nn.Linear
    assert prepared_notes(model)["model.layers.1.mlp.up_proj"].startswith("scheme (")
    # The library's hook stays for as long as there is something that only it can decompress.
    dense = getattr(linear, "weight", None) is not None
    assert hasattr(model, "ct_decompress_hook") != dense
    assert ("made dense" in prepared_notes(model)["model.layers.1.mlp.up_proj"]) == dense


def test_a_layer_that_is_not_served_has_a_row_and_is_an_error_where_that_was_asked_for(tmp_path: Path) -> None:
    """W4A4 beside W4A16: the library rounds the activations of its layer, as without us."""
    path = compressed_tensors_folder(tmp_path, group=32).path
    model, expected = from_pretrained(path), from_pretrained(path)
    library = import_module("compressed_tensors.quantization")
    for each in (model, expected):
        scheme = copy.deepcopy(each.model.layers[1].mlp.up_proj.quantization_scheme)
        scheme.input_activations = library.QuantizationArgs(num_bits=4, strategy="token", dynamic=True)
        each.model.layers[1].mlp.up_proj.quantization_scheme = scheme
        import_module("compressed_tensors.quantization.lifecycle.forward").set_forward_quantized(each.model.layers[1].mlp.up_proj)
    ids = token_ids(model.config)
    torch._dynamo.reset()
    compiled = qcompile.compile(model, rest="eager", measure=False)
    assert (output(compiled, ids) - output(expected, ids)).abs().max() < 0.05
    rows = {row.module: row for row in qcompile.report().unserved}
    assert list(rows) == ["model.layers.1.mlp.up_proj"]
    assert "int4 token" in rows["model.layers.1.mlp.up_proj"].declined
    torch._dynamo.reset()
    with pytest.raises(BackendCompilerFailed, match=r"model\.layers\.1\.mlp\.up_proj: scheme"):
        output(qcompile.compile(model, rest="eager", measure=False, fallback="error"), ids)


def replace(module: Any, name: str, value: torch.Tensor) -> None:
    setattr(module, name, nn.Parameter(value, requires_grad=False))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda m: replace(m, "weight_scale", torch.ones(64, 3)),
            r"weight_scale: .* \[64, 2\], got .* \[64, 3\]",
        ),
        (lambda m: replace(m, "weight_packed", m.weight_packed[:, :7]), r"weight_packed: expected a torch.int32 tensor \[64, 8\]"),
        (lambda m: replace(m, "weight_packed", m.weight_packed.long()), r"weight_packed: .* got torch.int64"),
        (lambda m: replace(m, "weight_shape", torch.tensor([64, 60])), r"weight_shape: expected \[64, 64\], got \[64, 60\]"),
        (lambda m: m.__delattr__("weight_scale"), r"weight_scale: .* got nothing"),
        (lambda m: setattr(m.quantization_scheme.weights, "group_size", 24), r"group size: expected a divisor of K=64, got 24"),
    ],
)
def test_contradictory_tensors_are_named(damage: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    model = from_pretrained(compressed_tensors_folder(tmp_path, group=32).path)
    linear = model.model.layers[0].self_attn.q_proj
    linear.quantization_scheme = copy.deepcopy(linear.quantization_scheme)
    damage(linear)
    prepare(model)
    assert type(linear) is nn.Linear
    assert re.search(message, prepared_notes(model)["model.layers.0.self_attn.q_proj"])
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 13


def test_an_infinite_scale_is_left_to_the_library(tmp_path: Path) -> None:
    model = from_pretrained(compressed_tensors_folder(tmp_path, group=32).path)
    model.model.layers[0].self_attn.q_proj.weight_scale.data[0, 0] = float("inf")
    prepare(model)
    assert "weight_scale: expected finite values, got 1 of 128" in prepared_notes(model)["model.layers.0.self_attn.q_proj"]
    assert model.model.layers[0].self_attn.q_proj.weight.isinf().any()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0, -1.0])
def test_a_global_scale_that_is_no_factor_is_refused(value: float, tmp_path: Path) -> None:
    model = from_pretrained(compressed_tensors_folder(tmp_path, format="nvfp4-pack-quantized").path)
    model.model.layers[0].self_attn.q_proj.weight_global_scale.data.fill_(value)
    prepare(model)
    assert "weight_global_scale: expected finite values above 0" in prepared_notes(model)["model.layers.0.self_attn.q_proj"]


# --- asymmetric checkpoints ------------------------------------------------------------------------------------------------------


def test_the_library_cannot_load_asymmetric_checkpoints_itself(tmp_path: Path) -> None:
    """Holds for transformers 5.23 with compressed-tensors 0.20; if it fails, zero_points.py has become unnecessary."""
    path = compressed_tensors_folder(tmp_path, group=32, symmetric=False).path
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)


def test_zero_points_that_loading_made_up_come_back_from_the_file(tmp_path: Path) -> None:
    path = compressed_tensors_folder(tmp_path, group=32, symmetric=False).path
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, ignore_mismatched_sizes=True)
    prepare(model)
    ids = token_ids(model.config)
    assert torch.equal(output(model.eval(), ids), output(from_pretrained(path), ids))


def test_made_up_zero_points_without_the_folder_are_refused(tmp_path: Path) -> None:
    path = compressed_tensors_folder(tmp_path, group=32, symmetric=False).path
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, ignore_mismatched_sizes=True)
    model.config._name_or_path = "somewhere/else"
    with pytest.raises(LostWeightError, match=r"q_proj\.weight_zero_point: expected packed zero points.*qcompile\.load"):
        prepare(model)


def test_the_mended_loading_leaves_the_library_as_it_was() -> None:
    compressor = import_module("compressed_tensors.compressors.pack_quantized").PackedQuantizationCompressor
    before = compressor.__dict__["compress"]
    with loading_asymmetric():
        assert compressor.__dict__["compress"] is not before
    assert compressor.__dict__["compress"] is before


def test_compile_takes_the_same_way(tmp_path: Path) -> None:
    path = compressed_tensors_folder(tmp_path, group=32).path
    model, expected = from_pretrained(path), from_pretrained(path)
    ids = token_ids(model.config)
    compiled = qcompile.compile(model, rest="eager")
    assert (output(compiled, ids) - output(expected, ids)).abs().max() < 0.05
