"""The benchmark of a whole model runs from its command line, and what it writes is complete and consistent."""

import json
import os
import subprocess
import sys
from pathlib import Path

from support.native_weights import require_kernels

ROOT = Path(__file__).resolve().parent.parent


def test_model_in_two_ways(tmp_path: Path) -> None:
    require_kernels()
    asked = ["--ways", "qcompile", "--prompt", "24", "--context", "16", "--tokens", "6", "--threads", "1"]
    folders = ["--checkpoints", str(tmp_path), "--out", str(tmp_path / "out")]
    env = os.environ | {"QCOMPILE_REST": "eager"}  # compiling the rest takes a minute and is no part of this
    command = [sys.executable, str(ROOT / "bench" / "model.py"), "--size", "small", *asked, *folders]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (found["prompt"], found["context"], found["tokens"]) == (24, 16, 6)
    ours, dense = found["runs"]
    assert (ours["way"], dense["way"]) == ("qcompile", "dense, eager")
    assert ours["summary"] == "qcompile: 28 of 28 quantized linears rewritten" and dense["summary"] == ""
    for run in (ours, dense):
        assert len(run["decode"]) == 3 and len(run["prefill"]) == 3 and min(*run["decode"], *run["prefill"]) > 0
        assert run["threads"] == 1 and run["peak_bytes"] > run["library_bytes"] > 0
        # 4 layers of 512 x 512, 2 x 256 x 512, 512 x 512 and 3 x 1408 x 512 weights; 4096 x 512 of the head, at 24 rows and one.
        products = 4 * (512 * (512 + 2 * 256 + 512) + 3 * 1408 * 512)
        assert run["operations"] == 2 * (24 * products + 4096 * 512)
        assert products / 2 + 2 * 4096 * 512 < run["weight_bytes"] < 1.1 * (products / 2 + 2 * 4096 * 512)
    table = (tmp_path / "out" / "model.md").read_text()
    decibels = float(next(line for line in table.splitlines() if line.startswith("| qcompile")).split("|")[-2].split()[0])
    assert decibels > 35
    assert "GB/s read" in table and "qcompile" in done.stdout
