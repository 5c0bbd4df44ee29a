"""Products of other projects in the benchmarks: a library that is missing is a printed line, one that is there lands in the tables."""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from support.native_weights import require_kernels
from torch import Tensor
from torch.nn.functional import linear

from bench import gemm, model
from bench.formats import FORMATS, integers, stored_bytes
from bench.peers import LIBRARIES, peers_of
from bench.peers.ggml_blocks import blocks_of, q4_0
from bench.peers.gguf_file import codes_of, in_pairs
from bench.peers.peer import Peer, UnfitError, unsigned_pairs
from qcompile.meaning import QuantizedWeight

MODULES = ("openvino", "onnxruntime", "llama_cpp", "gguf")


@pytest.fixture
def without_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def fake_peers(weight: QuantizedWeight, threads: int) -> list[Peer]:
    """Two that take float32: one is right, the other one "rounds" and answers twice as much."""
    dense, size = weight.dequantize(), weight.codes.numel()
    right, twice = (partial(linear, weight=dense * factor) for factor in (1, 2))
    return [
        Peer(f"fake, {threads} thread", [right, right], size, False, ready=Tensor.float, pool="fake"),
        Peer("fake that rounds", [twice, twice], size, True, ready=Tensor.float, pool="fake"),
    ]


@pytest.mark.usefixtures("without_libraries")
def test_a_missing_library_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    weight = integers(16, 128, 4, 128)
    assert list(peers_of(weight, list(LIBRARIES), 1)) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(LIBRARIES)
    for line, (name, packages) in zip(lines, LIBRARIES.items(), strict=True):
        assert line.startswith(f"  {name}: ") and line.endswith(f"pip install {packages}"), line


@pytest.mark.usefixtures("without_libraries", "same_threads")
def test_a_peer_lands_in_the_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    require_kernels()
    module = ModuleType("bench.peers.fake")
    monkeypatch.setattr(module, "peers", fake_peers, raising=False)
    monkeypatch.setitem(sys.modules, "bench.peers.fake", module)
    monkeypatch.setitem(LIBRARIES, "fake", "fake")
    asked = ["--shapes", "1024x1024", "--m", "1,3", "--budget", "0.1", "--threads", "1", "--kernels", "native.int4"]
    monkeypatch.setattr(sys, "argv", ["gemm.py", *asked, "--peers", "openvino", "fake", "--out", str(tmp_path)])
    gemm.main()
    assert "  openvino: " in capsys.readouterr().out
    rows = json.loads((tmp_path / "gemm.json").read_text())["rows"]
    found = {(row["kernel"], row["m"]): row for row in rows}
    assert {name for name, _ in found} >= {"native.int4", "fake, 1 thread", "fake that rounds"}
    for m in (1, 3):
        assert found["native.int4", m]["error"] < 1e-2 and found["fake, 1 thread", m]["error"] < 1e-6
        assert found["fake that rounds", m]["error"] == pytest.approx(1, abs=1e-3)
    plain, rounded = (tmp_path / "gemm.md").read_text().split("Activations rounded to 8 bit")
    assert "| native.int4 |" in plain and "| fake, 1 thread |" in plain
    assert "| fake that rounds |" in rounded and "fake that rounds" not in plain


@pytest.mark.usefixtures("without_libraries")
def test_a_model_runs_without_the_peer_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    given = argparse.Namespace(ways=["qcompile"], peers=["llama.cpp"])
    assert model.ways_here(given, Console()) == ["qcompile", "dense, eager"]
    assert "llama.cpp: not installed: pip install llama-cpp-python gguf" in capsys.readouterr().out


def test_q4_0_holds_the_same_weight() -> None:
    weight = integers(8, 256, 4, 128)
    blocks = q4_0(weight.codes, weight.scales, weight.group).reshape(8, 8, 18)
    scales = blocks[..., :2].contiguous().view(torch.float16).float()
    codes = torch.cat([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], dim=-1).float() - 8
    assert torch.equal((codes * scales).reshape(8, 256), weight.dequantize())


@pytest.mark.parametrize("name", ["q8_0", "q4_k", "q6_k", "mxfp4", "nvfp4"])
def test_blocks_of_ggml_hold_the_same_weight(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    weight = FORMATS[name](8, 512)
    blocks = blocks_of(weight)
    kind = gguf.GGMLQuantizationType(blocks.type)
    assert kind.name == blocks.name
    found = torch.from_numpy(gguf.quants.dequantize(blocks.rows.numpy(), kind)) * blocks.factor
    torch.testing.assert_close(found, weight.dequantize(), rtol=1e-6, atol=0.0)


def test_a_weight_without_blocks_of_ggml_is_refused() -> None:
    for name in ("int3", "fp8", "int4-zeros"):
        with pytest.raises(UnfitError):
            blocks_of(FORMATS[name](8, 512))


def test_codes_of_a_checkpoint_are_those_that_were_packed() -> None:
    weight = integers(8, 256, 4, 128)
    assert torch.equal(codes_of(unsigned_pairs(weight).view(torch.int32)), weight.codes)


def test_rotary_halves_become_pairs() -> None:
    """Of each of 2 heads of 6 rows: the halves (0, 1, 2) and (3, 4, 5) alternate."""
    rows = torch.arange(12).unsqueeze(1)
    assert in_pairs(rows, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert in_pairs(rows, 0) is rows


# Bits of each weight of 512 x 1024 in its checkpoint.
BITS = {
    "int2": 2.125, "int3": 3.125, "int5": 5.125, "int6": 6.125, "q4_k": 4.5, "q6_k": 6.5625, "int4": 4.125, "int4-zeros": 4.1875, "int8": 8.016, "q8_0": 8.5, "nvfp4": 4.5, "mxfp4": 4.25, "fp8": 8.016, "fp8-block": 8.002, "mxfp8": 8.25,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_a_weight_of_the_size_of_its_checkpoint(name: str) -> None:
    weight = FORMATS[name](512, 1024)
    weight.check()
    assert stored_bytes(weight) * 8 / (512 * 1024) == pytest.approx(BITS[name], abs=2e-3)


@pytest.mark.usefixtures("without_libraries", "same_threads")
def test_several_formats_stand_in_one_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require_kernels()
    asked = [
        "--format",
        "nvfp4,fp8",
        "--shapes",
        "256x256",
        "--m",
        "2",
        "--budget",
        "0.02",
        "--threads",
        "1",
        "--kernels",
        "native",
    ]
    monkeypatch.setattr(sys, "argv", ["gemm.py", *asked, "--out", str(tmp_path)])
    gemm.main()
    text = (tmp_path / "gemm.md").read_text()
    assert "| nvfp4 | native.book4 |" in text and "| fp8 | native.fp8 |" in text


def test_an_unknown_format_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gemm.py", "--format", "fp8,fp9"])
    with pytest.raises(SystemExit):
        gemm.main()
    assert "--format: expected int4," in capsys.readouterr().err
