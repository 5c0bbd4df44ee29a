"""What a folder's files, its config.json and the model say is compared before a model is handed out; every error names what is wrong."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import BAD, folders
from safetensors.torch import load_file, save_file
from support.checkpoints import awq_folder, compressed_tensors_folder, float_model, gptq_folder, llama_config
from torch import Tensor

import qcompile
from qcompile.errors import CheckpointError, UnsupportedSchemeError, UnsupportedVersionError, WeightError

SMALL = llama_config(num_hidden_layers=1, vocab_size=32)
LAYER = "model.layers.0.self_attn.k_proj"
MAKERS: dict[str, Callable[[Path], Any]] = {
    "gptq": lambda folder: gptq_folder(folder, SMALL),
    "act-order": lambda folder: gptq_folder(folder, SMALL, symmetric=False, act_order=True),
    "awq": lambda folder: awq_folder(folder, SMALL),
    "pack": lambda folder: compressed_tensors_folder(folder, SMALL, group=32, symmetric=False),
    "int8": lambda folder: compressed_tensors_folder(folder, SMALL, bits=8, group=None, activations="static"),
    "nvfp4": lambda folder: compressed_tensors_folder(folder, SMALL, format="nvfp4-pack-quantized"),
    "mxfp4": lambda folder: compressed_tensors_folder(folder, SMALL, format="mxfp4-pack-quantized"),
    "nvfp4-a4": lambda folder: compressed_tensors_folder(
        folder, SMALL, format="nvfp4-pack-quantized", activations="dynamic", samples=[{"input_ids": torch.arange(3, 9)[None]}]
    ),
    "fp8": lambda folder: compressed_tensors_folder(folder, SMALL, format="float-quantized", block=(24, 40)),
    "dense": lambda folder: float_model(SMALL).save_pretrained(folder),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One whole folder of every kind."""
    made = {name: tmp_path_factory.mktemp("whole") / name for name in MAKERS}
    for name, folder in made.items():
        MAKERS[name](folder)
    return made


@pytest.fixture
def folder(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copied(kind: str) -> Path:
        return Path(shutil.copytree(saved[kind], tmp_path / kind))

    return copied


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    (path / "model.safetensors").unlink()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def become(path: Path, tensors: dict[str, Tensor]) -> None:
    """The folder holds exactly these tensors."""
    (path / "model.safetensors").unlink()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def edit_entry(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((path / "config.json").read_text())
    change(config["quantization_config"])
    (path / "config.json").write_text(json.dumps(config))


def need_error(path: Path, *words: str) -> str:
    """Loading names the file and everything in `words`."""
    with pytest.raises(CheckpointError) as caught:
        qcompile.load(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert re.search(word, message), message
    return message


EVERY_PART = [
    *(("gptq", part) for part in ("qweight", "qzeros", "scales")),
    *(("act-order", part) for part in ("qweight", "qzeros", "scales", "g_idx")),
    *(("awq", part) for part in ("qweight", "qzeros", "scales")),
    *(("pack", part) for part in ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")),
    *(("int8", part) for part in ("weight", "weight_scale", "input_scale")),
    *(("nvfp4", part) for part in ("weight_packed", "weight_scale", "weight_global_scale")),
    *(("mxfp4", part) for part in ("weight_packed", "weight_scale")),
    *(("nvfp4-a4", part) for part in ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")),
    *(("fp8", part) for part in ("weight", "weight_scale")),
]


@pytest.mark.parametrize(("kind", "part"), EVERY_PART)
def test_a_part_that_is_missing_misshapen_or_of_another_dtype_is_named(kind: str, part: str, folder: Callable[[str], Path]) -> None:
    name = f"{LAYER}.{part}"
    path = folder(kind)
    whole = load_file(path / "model.safetensors")
    tensor = whole[name]
    edit(path, lambda tensors: tensors.pop(name))
    need_error(path, re.escape(name), "got nothing", "download or save it again")
    for wrong in (torch.cat([tensor, tensor]), tensor[:0], tensor[None], tensor.to(torch.float64), tensor.to(torch.int16)):
        become(path, {**whole, name: wrong.contiguous()})
        need_error(path, re.escape(name), "expected", "got torch")


@pytest.mark.parametrize("kind", MAKERS)
def test_every_other_tensor_is_missed_as_well(kind: str, folder: Callable[[str], Path]) -> None:
    path = folder(kind)
    whole = load_file(path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"):
        become(path, {key: value for key, value in whole.items() if key != name})
        need_error(path, re.escape(name), "got nothing")
    become(path, {**whole, "model.norm.weight": torch.ones(63).bfloat16()})
    need_error(path, r"model\.norm\.weight: expected a floating point tensor \[64\], got torch.bfloat16 \[63\]")
    become(path, {**whole, "model.norm.weight": torch.ones(64, dtype=torch.int32)})
    need_error(path, r"model\.norm\.weight: expected a floating point tensor \[64\], got torch.int32 \[64\]")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_layer_that_is_missing_and_tensors_that_are_too_many(kind: str, folder: Callable[[str], Path]) -> None:
    path = folder(kind)
    whole = load_file(path / "model.safetensors")
    parts = [name for name in whole if name.startswith(f"{LAYER}.")]
    edit(path, lambda tensors: [tensors.pop(name) for name in parts])
    need_error(path, re.escape(f"{LAYER}.weight"), "got nothing")
    for surplus in (f"{LAYER}.other", "model.layers.7.mlp.up_proj.weight", "model.layers.0.more.weight", f"{LAYER}2.qweight"):
        become(path, {**whole, surplus: torch.zeros(2, 2)})
        need_error(path, re.escape(surplus))
    if kind != "dense" and f"{LAYER}.weight" not in whole:
        become(path, {**whole, f"{LAYER}.weight": torch.zeros(32, 64)})
        need_error(path, re.escape(f"{LAYER}.weight"))


def test_the_same_layer_under_two_names(folder: Callable[[str], Path]) -> None:
    path = folder("gptq")

    def double(tensors: dict[str, Tensor]) -> None:
        tensors |= {name.removeprefix("model."): tensors[name].clone() for name in list(tensors) if name.startswith(f"{LAYER}.")}

    edit(path, double)
    need_error(path, "a layer that is stored once")


@pytest.mark.parametrize("kind", ["gptq", "awq", "pack", "int8", "nvfp4", "fp8"])
def test_scales_that_are_no_numbers(kind: str, folder: Callable[[str], Path]) -> None:
    name = f"{LAYER}.{'scales' if kind in {'gptq', 'awq'} else 'weight_scale'}"
    path = folder(kind)

    def spoil(tensors: dict[str, Tensor]) -> None:
        wide = tensors[name].float()
        wide[0] = float("nan")
        tensors[name] = wide.to(tensors[name].dtype)

    edit(path, spoil)
    need_error(path, re.escape(name), "expected finite values")


def test_an_exponent_that_is_no_number(folder: Callable[[str], Path]) -> None:
    path, name = folder("mxfp4"), f"{LAYER}.weight_scale"
    edit(path, lambda tensors: tensors[name][0].fill_(255))
    need_error(path, re.escape(name), "expected exponents of 0 to 254", "got 255, which is NaN")


def test_a_weight_that_is_no_number(folder: Callable[[str], Path]) -> None:
    path, name = folder("fp8"), f"{LAYER}.weight"

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(torch.uint8)[3, 5] = 0xFF

    edit(path, spoil)
    need_error(path, re.escape(name), "expected finite numbers, got 1 of [0-9]+ that are NaN")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
def test_a_global_scale_that_is_no_factor(value: float, folder: Callable[[str], Path]) -> None:
    for part in ("weight_global_scale", "input_global_scale"):
        path = folder("nvfp4-a4")
        edit(path, lambda tensors: tensors.update({f"{LAYER}.{part}": torch.tensor([value])}))  # noqa: B023 - called at once
        need_error(path, f"{part}: expected finite values above 0")
        shutil.rmtree(path)


def test_orders_that_are_none(folder: Callable[[str], Path]) -> None:
    path, name = folder("act-order"), f"{LAYER}.g_idx"
    g_idx = load_file(path / "model.safetensors")[name]
    for place, value, message in (
        (0, 9, r"values 0 \.\. 1, got \[64\], 0 \.\. 9"),
        (0, int(g_idx[0]) ^ 1, "32 columns in every group"),
    ):
        changed = g_idx.clone()
        changed[place] = value
        become(path, {**load_file(path / "model.safetensors"), name: changed})
        need_error(path, re.escape(name), message)
    edit(path, lambda tensors: tensors.update({name: g_idx}))
    edit_entry(path, lambda entry: entry.update(desc_act=False))
    need_error(path, r"g_idx: expected columns in order, because config.json says desc_act: false")


ENTRIES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("gptq", lambda e: e.update(bits=5), r"quantization_config\.bits: expected one of 2, 3, 4, 8, got 5"),
    ("gptq", lambda e: e.update(bits="four"), r"bits: .* got 'four'"),
    ("gptq", lambda e: e.update(bits=8), r"for 8 bits"),
    ("gptq", lambda e: e.pop("bits"), r"bits: .* got nothing"),
    ("gptq", lambda e: e.update(group_size=0), r"group_size: expected a positive integer, or -1 for one group, got 0"),
    ("gptq", lambda e: e.update(group_size=-1), r"scales: .*\[1, 64\]"),
    ("gptq", lambda e: e.update(group_size=48), r"a group size that divides K=128"),
    ("gptq", lambda e: e.update(group_size=64), r"for a group size of 64"),
    ("gptq", lambda e: e.update(sym="yes"), r"sym: expected true or false, got 'yes'"),
    ("gptq", lambda e: e.pop("quant_method"), r"quant_method: expected one of compressed-tensors, gptq, awq, got nothing"),
    ("awq", lambda e: e.update(bits=8), r"bits: expected 4, got 8"),
    ("pack", lambda e: e.update(config_groups={}), r"config_groups: expected an object with at least one group"),
    ("pack", lambda e: e.update(config_groups=["Linear"]), r"config_groups: expected an object"),
    ("pack", lambda e: e.update(ignore=3), r"ignore: expected a list of texts, got 3"),
    ("pack", lambda e: e["ignore"].append(LAYER), rf"ignore: expected layers that the files hold dense, got {LAYER}"),
    ("pack", lambda e: e["config_groups"]["group_0"].update(targets=["re:["]), r"targets: expected regular expressions"),
    (
        "pack",
        lambda e: e["config_groups"]["group_0"].update(targets=["re:.*up_proj"]),
        r"whose targets name model\.layers\.0\..*, got none",
    ),
    ("pack", lambda e: e["config_groups"]["group_0"]["weights"].update(num_bits="4"), r"num_bits: expected an integer"),
    (
        "pack",
        lambda e: e["config_groups"]["group_0"]["weights"].update(num_bits=8),
        r"weight_packed: expected a torch.int32 tensor",
    ),
    ("pack", lambda e: e["config_groups"]["group_0"]["weights"].update(group_size=0), r"group_size: expected a positive integer"),
    ("pack", lambda e: e["config_groups"]["group_0"]["weights"].update(group_size=16), r"weight_scale: expected a float16"),
    ("pack", lambda e: e["config_groups"]["group_0"]["weights"].update(symmetric=True), r"weight_zero_point"),
]


@pytest.mark.parametrize(("kind", "change", "message"), ENTRIES, ids=[f"{kind} {message[:40]}" for kind, _, message in ENTRIES])
def test_a_field_of_the_config_that_is_wrong_or_does_not_fit(
    kind: str, change: Callable[[dict[str, Any]], object], message: str, folder: Callable[[str], Path]
) -> None:
    path = folder(kind)
    edit_entry(path, change)
    need_error(path, message)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gptq", {"checkpoint_format": "marlin"}, "GPTQ in the format marlin"),
        ("awq", {"version": "gemv"}, "AWQ in the version gemv"),
        ("pack", {"transform_config": {"config_groups": {"u": {}}}}, "with a transform_config"),
    ],
)
def test_forms_that_would_be_misread_are_refused(
    kind: str, changes: dict[str, Any], message: str, folder: Callable[[str], Path]
) -> None:
    path = folder(kind)
    edit_entry(path, lambda entry: entry.update(changes))
    with pytest.raises(UnsupportedSchemeError, match=message):
        qcompile.load(path)


def test_a_layer_that_the_config_promises_and_the_files_hold_dense(folder: Callable[[str], Path]) -> None:
    path = folder("pack")

    def dense(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(f"{LAYER}.")]:
            del tensors[name]
        tensors[f"{LAYER}.weight"] = torch.zeros(32, 64).bfloat16()

    edit(path, dense)
    need_error(path, re.escape(f"{LAYER}.weight"), "expected a quantized weight", r"got torch.bfloat16 \[32, 64\]")


def test_a_quantized_folder_without_its_entry(folder: Callable[[str], Path]) -> None:
    path = folder("gptq")
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    need_error(path, r"config.json: quantization_config: expected an entry, because the files hold .*_proj quantized")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "failure", [OSError(5, "Input/output error"), PermissionError(13, "Permission denied")], ids=["io", "perm"]
)
def test_a_file_that_cannot_be_read(
    name: str, failure: OSError, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way by which the file is opened fails; nothing half loaded comes out, and the next call works."""
    path = folder("gptq")
    import builtins  # noqa: PLC0415 - replaced here only
    import io  # noqa: PLC0415

    opened = builtins.open

    def failing(file: Any, *args: Any, **kw: Any) -> Any:
        if str(file) == str(path / name):
            raise failure
        return opened(file, *args, **kw)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", failing)
        patched.setattr(io, "open", failing)
        need_error(path, re.escape(name), type(failure).__name__)
    qcompile.load(path)


def test_every_read_of_a_tensor_may_fail(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th tensor cannot be read, for several n: mapping, seeking or reading failed below safetensors."""
    path = folder("gptq")
    loading: Any = __import__("transformers.core_model_loading", fromlist=["_materialize_copy"])
    reading = loading._materialize_copy
    for number in (0, 1, 7, 20):
        calls: list[int] = []

        def failing(*args: Any, number: int = number, calls: list[int] = calls, **kw: Any) -> Any:
            calls.append(1)
            if len(calls) > number:
                raise OSError(5, "Input/output error")
            return reading(*args, **kw)

        with monkeypatch.context() as patched:
            patched.setattr(loading, "_materialize_copy", failing)
            need_error(path, "Input/output error", "expected files from which the model can be loaded")
    qcompile.load(path)


def test_what_safetensors_itself_says_names_the_file(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("gptq")
    safetensors: Any = __import__("safetensors")

    def failing(*_: Any, **__: Any) -> Any:
        raise safetensors.SafetensorError("mmap failed: Cannot allocate memory")

    monkeypatch.setattr(safetensors, "safe_open", failing)
    need_error(path, r"model\.safetensors: expected a safetensors file, got SafetensorError: mmap failed")


def test_a_failed_load_leaves_the_callers_config_alone(folder: Callable[[str], Path]) -> None:
    import transformers  # noqa: PLC0415 - slow to import

    path = folder("gptq")
    config = transformers.AutoConfig.from_pretrained(path)
    before = config.to_dict()
    qcompile.load(path, config=config)
    assert config.to_dict() == before
    edit(path, lambda tensors: tensors.pop(f"{LAYER}.scales"))
    with pytest.raises(WeightError):
        qcompile.load(path, config=config)
    assert config.to_dict() == before


def test_without_transformers_it_is_a_sentence(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedVersionError, match=r"qcompile\.load needs transformers >=5\.20, got none .*pip install"):
        qcompile.load(folder("gptq"))


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_damages(first: int, tmp_path: Path) -> None:
    """A fixed part of what `make fuzz` tries for longer."""
    for seed in range(first, first + 20):
        outcome = folders.case(seed, tmp_path / str(seed))
        assert outcome.kind not in BAD, f"seed {seed}: {outcome.kind}: {outcome.detail}"
        shutil.rmtree(tmp_path / str(seed))


@pytest.mark.parametrize("given", [1.5, "LlamaForCausalLM", [3], {"LlamaForCausalLM": 1}])
def test_architectures_that_are_no_list_of_names(folder: Callable[[str], Path], given: object) -> None:
    """Loaded as a bare AutoModel, a model without its head would come out of it."""
    path = folder("dense")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": given}))
    with pytest.raises(CheckpointError, match=r"config\.json: architectures: expected a list of class names, got "):
        qcompile.load(path)


@pytest.mark.parametrize("kind", ["dense", "gptq"])
def test_a_number_of_layers_that_no_file_holds(folder: Callable[[str], Path], kind: str) -> None:
    """Building a thousand million layers would come first otherwise."""
    path = folder(kind)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    with pytest.raises(
        CheckpointError, match=r"config\.json: num_hidden_layers: expected at most one layer for each of the \d+ tensors"
    ):
        qcompile.load(path)
