"""Folders of FP4 and FP8 that compressed-tensors made: they load, run packed in a kernel of our own, and match that library's model."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import compressed_tensors_folder, llama_config, token_ids

import qcompile
from qcompile.meaning import sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_compiler")

SIZES: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "vocab_size": 256}
# How compressed-tensors is asked for it; the kernel, what the report calls it, bytes of the weights over those in bfloat16.
FOLDERS: dict[str, tuple[dict[str, Any], str, str, float]] = {
    "NVFP4A16": ({"format": "nvfp4-pack-quantized"}, "native.book4", "book4 e2m1 g16", 0.30),
    "MXFP4A16": ({"format": "mxfp4-pack-quantized"}, "native.book4", "book4 e2m1 g32", 0.30),
    "MXFP8A16": ({"format": "mxfp8-quantized"}, "native.fp8", "fp8 g32", 0.55),
    "FP8 per channel": ({"format": "float-quantized"}, "native.fp8", "fp8 channel", 0.55),
    "FP8 128x128": ({"format": "float-quantized", "block": (128, 128)}, "native.fp8", "fp8 128x128", 0.55),
}
# With activations rounded as well. Two of the library's own models, with one kind of attention and another, are as far from each other
# as NOISE_DB: a number that is rounded the other way is far off. So the layers are compared one by one.
ROUNDED: dict[str, tuple[dict[str, Any], str, str]] = {
    "NVFP4": ({"format": "nvfp4-pack-quantized", "activations": "dynamic"}, "native.book4", "book4 e2m1 g16, a4 nvfp4"),
    "MXFP4": ({"format": "mxfp4-pack-quantized", "activations": "dynamic"}, "native.book4", "book4 e2m1 g32, a4 mxfp4"),
    "MXFP8": ({"format": "mxfp8-quantized", "activations": "dynamic"}, "native.fp8", "fp8 g32, a8 mxfp8"),
    "FP8 dynamic": ({"format": "float-quantized", "activations": "dynamic"}, "native.fp8", "fp8 channel, a8 fp8 token"),
    "FP8 static": ({"format": "float-quantized", "activations": "static"}, "native.fp8", "fp8 channel, a8 fp8 static"),
    "FP8 blocks": (
        {"format": "float-quantized", "block": (128, 128), "activations": "dynamic"},
        "native.fp8",
        "fp8 128x128, a8 fp8 g128",
    ),
}
NOISE_DB, LAYER_DB = 14.0, 45.0


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_runs_packed_and_matches_the_library(name: str, tmp_path: Path) -> None:
    scheme, kernel, words, most = FOLDERS[name]
    path = compressed_tensors_folder(tmp_path, llama_config(**SIZES), **scheme).path
    expected: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    model = qcompile.compile(qcompile.load(path))
    for length in (1, 8, 40):
        ids = token_ids(expected.config, batch=1, length=length)
        with torch.no_grad():
            theirs, ours = expected(ids).logits, model(ids).logits
        assert sqnr_db(theirs, ours) >= 35.0
    rows = [row for row in qcompile.report().sites if row.module != "lm_head"]
    assert len(rows) == 14
    assert {(row.kernel, row.scheme) for row in rows} == {(kernel, words)}
    assert sum(row.bytes_after for row in rows) <= most * sum(2 * row.n * row.k for row in rows)
    assert all(row.sqnr_db is not None and (row.sqnr_db >= 45.0 or math.isinf(row.sqnr_db)) for row in rows)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_activations_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    scheme, kernel, words = ROUNDED[name]
    config = llama_config(**{**SIZES, "intermediate_size": 1408})
    if scheme["format"].startswith("nvfp4"):
        scheme = {**scheme, "samples": [{"input_ids": token_ids(config)}]}
    path = compressed_tensors_folder(tmp_path, config, **scheme).path
    expected: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    model = qcompile.load(path)
    ids = token_ids(config)
    with torch.no_grad():
        theirs = expected(ids).logits
        assert torch.equal(theirs, model(ids).logits)  # eagerly, bit by bit
        compiled = qcompile.compile(model)
        assert sqnr_db(theirs, compiled(ids).logits) >= NOISE_DB
        rows = [row for row in qcompile.report().sites if row.module != "lm_head"]
        assert len(rows) == 14 and {(row.kernel, row.scheme) for row in rows} == {(kernel, words)}
        for layer in ("self_attn.k_proj", "mlp.down_proj"):
            torch._dynamo.reset()
            ours = model.model.layers[1].get_submodule(layer)
            x = torch.randn(1, 9, ours.in_features, generator=torch.Generator().manual_seed(3)).bfloat16() * 3
            y = torch.compile(ours, backend="qcompile")(x)
            assert sqnr_db(expected.model.layers[1].get_submodule(layer)(x), y) >= LAYER_DB
            assert ours.use_a16 is False
