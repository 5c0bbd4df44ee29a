"""The command line: what each command prints, as text and as JSON, and its exit codes."""

import json
from pathlib import Path

import pytest
import torch
from support.checkpoints import compressed_tensors_folder

from qcompile.cli import FAILED, OK, USAGE, main
from qcompile.cli.bench_command import table
from qcompile.cli.dense import make_dense
from qcompile.cli.folder import load_model
from qcompile.hardware import KNOWN
from qcompile.targets.registry import kernels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed_tensors_folder(tmp_path_factory.mktemp("llama"), bits=4, group=32).path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    torch.compiler.reset()  # otherwise a model of the same shape would find the earlier one's compiled graph and report nothing
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_platform(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "platform", "--platform", "zen4")
    assert code == OK
    assert out.startswith("zen4 (simulated)")
    code, out, _ = run(capsys, "platform", "--json")
    assert code == OK
    assert {"name", "isa", "libraries", "torch"} <= json.loads(out).keys()


def test_platform_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "platform", "--list")[1].split() == list(KNOWN)
    assert json.loads(run(capsys, "platform", "--list", "--json")[1]) == sorted(KNOWN)


def test_kernels_names_every_kernel_with_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "kernels", "--platform", "gfx1100", "--json")
    found = json.loads(out)
    assert code == OK
    assert list(found) == list(kernels())
    assert found["zentorch.woq_linear"]["runs_here"] is False
    assert found["zentorch.woq_linear"]["reasons"]
    code, out, _ = run(capsys, "kernels", "--platform", "gfx1100")
    assert all(name in out for name in kernels())


def test_explain_for_another_platform(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = run(capsys, "explain", str(folder), "--platform", "zen4", "--kernels", "zentorch", "--json")
    found = json.loads(out)
    assert found["total"] == found["rewritten"] == 14
    assert {site["kernel"] for site in found["sites"]} == {"zentorch.woq_linear"}
    assert code == OK


def test_explain_fails_when_a_layer_has_no_kernel(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = run(capsys, "explain", str(folder), "--disable", ",".join(sorted({row.target for row in kernels().values()})))
    assert code == FAILED
    assert "0 of 14 quantized linears rewritten" in out


def test_explain_with_fallback_error_says_which_layers(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    names = ",".join(sorted({row.target for row in kernels().values()}))
    code, _, err = run(capsys, "explain", str(folder), "--disable", names, "--fallback", "error")
    assert code == FAILED
    assert "model.layers.0.self_attn.q_proj" in err


def test_run_generates_token_ids_without_a_tokenizer(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = run(capsys, "run", str(folder), "--prompt", "5 6 7", "--tokens", "5", "--rest", "eager", "--json")
    found = json.loads(out)
    assert code == OK
    assert len(found["tokens"]) == 5
    assert found["text"] is None
    dense = load_model(folder)
    assert make_dense(dense, torch.bfloat16) == 14
    with torch.inference_mode():
        ids = torch.tensor([[5, 6, 7]])
        expected = dense.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert found["tokens"] == expected[0, 3:].tolist()


def test_run_prints_tokens_and_the_report(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, err = run(capsys, "run", str(folder), "--prompt", "5 6 7", "--tokens", "3", "--rest", "eager")
    assert code == OK
    assert len(out.split()) == 3
    assert "14 of 14 quantized linears rewritten" in err


@pytest.mark.parametrize("prompt", ["hello", "5 999999", ","])
def test_run_refuses_a_prompt_that_is_no_token_ids(capsys: pytest.CaptureFixture[str], folder: Path, prompt: str) -> None:
    code, _, err = run(capsys, "run", str(folder), "--prompt", prompt)
    assert code == FAILED
    assert "the prompt must be token ids below 128" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("kernels", "--platform", "zen99"), "unknown platform 'zen99'"),
        (("explain", "FOLDER", "--kernels", "zentorch.woq_liner"), "Did you mean 'zentorch.woq_linear'?"),
        (("explain", "FOLDER", "--fallback", "none"), "option 'fallback'"),
        (("bench", "FOLDER", "--against", "onnx"), "unknown way to run a model 'onnx'"),
    ],
)
def test_wrong_names_are_usage_errors(
    capsys: pytest.CaptureFixture[str], folder: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, err = run(capsys, *(str(folder) if word == "FOLDER" else word for word in words))
    assert code == USAGE
    assert message in err


@pytest.mark.parametrize("words", [(), ("fly",), ("explain",), ("explain", "no-such-folder"), ("run", "FOLDER", "--tokens", "0")])
def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str], folder: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(folder) if word == "FOLDER" else word for word in words])
    assert caught.value.code == USAGE
    assert "usage: qcompile" in capsys.readouterr().err


def test_folder_without_config_is_a_usage_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["explain", str(tmp_path)])
    assert caught.value.code == USAGE
    assert "has no config.json" in capsys.readouterr().err


def test_broken_folder_is_reported_not_traced(capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    code, _, err = run(capsys, "explain", str(tmp_path))
    assert code == FAILED
    assert err.splitlines()[-1].startswith(f"qcompile: {tmp_path}: expected model.safetensors")


def test_bench_table_shows_the_speed_up() -> None:
    one = {"prefill_ms": 10.0, "decode_ms": 2.0, "resident_bytes": 10**8, "peak_bytes": 2 * 10**8, "first_s": 1.0}
    other = one | {"way": "eager", "prefill_ms": 15.0, "decode_ms": 9.0}
    shown = table([one | {"way": "qcompile"}, other])
    assert [list(column.cells)[1] for column in shown.columns] == [
        "dense, eager",
        "15.0 (1.5x)",
        "9.0 (4.5x)",
        "100 MB",
        "200 MB",
        "1.0 s",
    ]


def test_bench_measures_each_way_in_its_own_process(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    words = ("--against", "eager", "--rest", "eager", "--tokens", "2", "--prompt-tokens", "4", "--release", "--json")
    code, out, err = run(capsys, "bench", str(folder), *words)
    assert code == OK, err
    packed, dense = json.loads(out)
    assert (packed["way"], dense["way"]) == ("qcompile", "eager")
    assert packed["summary"] == "qcompile: 14 of 14 quantized linears rewritten"
    assert packed["model_bytes"] < dense["model_bytes"]
    assert packed["two_largest_bytes"] == 2 * 128 * 64 * 2
    assert all(found[name] > 0 for found in (packed, dense) for name in ("prefill_ms", "decode_ms", "first_s"))
