"""Dumps write every step into one folder; explanations and other platforms decide and run nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.packed_linears import Stack
from support.spellings import BF16, K, N, Written, int4, linear, scale

import qcompile
from qcompile.meaning import sqnr_db
from qcompile.passes import PIPELINE
from qcompile.reporting.rows import SiteReport
from qcompile.targets.registry import kernels as known

X = torch.randn(3, K, generator=torch.Generator().manual_seed(0)).to(BF16)


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def run(model: Any, **options: Any) -> tuple[SiteReport, ...]:
    """Compile, compare with eager, and return the report's rows."""
    with torch.no_grad():
        want = model(X)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", **options})(X)
    assert sqnr_db(want, got) >= 40
    return qcompile.report().sites


def test_what_an_earlier_process_dumped_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for number in (0, 250):
        folder = tmp_path / f"graph_{number:03d}"
        folder.mkdir()
        for name in ("03_after_fold.txt", "decisions.json", "graph.svg"):
            (folder / name).write_text("of another process")
    mine = tmp_path / "graph_250" / "notes.txt"
    mine.write_text("not ours")
    run(Stack(1), kernels=["reference"], dump=tmp_path)
    run(Stack(2), kernels=["reference"], dump=tmp_path)  # the second graph of this process takes nothing away
    left = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert left.pop("graph_250/notes.txt").read_text() == "not ours"
    assert all(path.read_text() != "of another process" for path in left.values())
    assert sum(name.endswith("decisions.json") for name in left) == 2


def test_dump_writes_every_step(tmp_path: Path) -> None:
    run(Stack(1), kernels=["reference"], dump=tmp_path)
    (folder,) = tmp_path.iterdir()
    names = {path.name for path in folder.iterdir()}
    for number, step in enumerate(PIPELINE):
        assert {f"{number:02d}_before_{step.name}.txt", f"{number:02d}_after_{step.name}.txt"} <= names
    assert {"decisions.txt", "decisions.json", "packing.txt", "graph.dot", "graph.svg"} <= names
    decisions = json.loads((folder / "decisions.json").read_text())
    assert [site["kernel"] for site in decisions["sites"]] == ["reference.quantized_linear"] * 4
    last = (folder / f"{len(PIPELINE) - 1:02d}_after_cleanup.txt").read_text()
    assert "dequantize_packed" not in last and "packed 0" in last
    assert (folder / "graph.svg").read_text().startswith("<svg") and "layers.0.down" in (folder / "graph.svg").read_text()
    assert "layers.0.down" in (folder / "packing.txt").read_text()


def test_a_dump_that_cannot_be_written_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert len(run(Stack(1), kernels=["reference"], dump=file)) == 4
    assert "could not be written" in caplog.text


def test_no_dump_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(Stack(1), kernels=["reference"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("platform", ["zen5", "x86-64-avx2", "gfx1100", "xpu"])
def test_another_platform_is_only_rewritten_for(platform: str) -> None:
    model = Written(lambda m, x: linear(x, m.q * m.s), {"q": int4(), "s": scale(N, 1)})
    report = qcompile.explain(model, X, platform=platform)
    assert len(report.sites) == 1 and report.sites[0].bits == 4
    assert set(report.sites[0].reasons) | {report.sites[0].kernel} >= set(known())


def test_explain_runs_and_records_nothing() -> None:
    report = qcompile.explain(Stack(1), X, options={"kernels": ["reference"]})
    assert [row.kernel for row in report.sites] == ["reference.quantized_linear"] * 4
    assert qcompile.report().sites == ()
