"""CI expects zentorch and our kernels where they run, and fails on a skip that names no absent hardware."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.skip_gate import expects_zentorch, unexpected

import qcompile.native
from qcompile.platform import platform

CI = os.environ.get("CI", "").lower() not in {"", "0", "false"}


@pytest.mark.parametrize(
    ("reason", "zentorch_runs", "wrong"),
    [
        ("no AMD GPU here", True, False),
        ("this processor has no AMX", True, False),
        ("needs avx512_vnni", True, False),
        ("zentorch is not installed", True, True),
        ("zentorch is not installed", False, False),
        ("zentorch cannot run: this processor has no AVX-512", False, False),
        ("could not import 'transformers': No module named 'transformers'", True, True),
        ("qcompile was built without its C++ kernels", False, True),
        ("clang with the AMDGPU target is not installed", True, True),
        ("not today", True, True),
    ],
)
def test_which_skips_are_unexpected(reason: str, zentorch_runs: bool, wrong: bool) -> None:
    assert unexpected(reason, zentorch_runs) is wrong


@pytest.mark.parametrize(
    ("reason", "ci", "status"),
    [("no AMD GPU here", "true", 0), ("not today", "true", 1), ("not today", "", 0), ("xfail", "true", 0)],
)
def test_ci_fails_on_an_unexpected_skip(tmp_path: Path, reason: str, ci: str, status: int) -> None:
    act = "pytest.xfail('known')" if reason == "xfail" else f"pytest.skip({reason!r})"
    (tmp_path / "test_one.py").write_text(f"import pytest\n\ndef test_passes():\n    pass\n\ndef test_one():\n    {act}\n")
    env = os.environ | {"CI": ci, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "support.skip_gate", "-p", "no:cacheprovider", "test_one.py"]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    assert ("skips that CI does not expect" in done.stdout) == (status == 1)


@pytest.mark.skipif(not CI, reason="only CI promises which targets are there (GPU or not)")
def test_ci_has_the_targets_it_expects() -> None:
    assert qcompile.native.missing() is None
    if expects_zentorch():
        assert platform().library("zentorch").state == "present", platform().library("zentorch").detail
