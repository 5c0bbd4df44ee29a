"""CI expects zentorch and our kernels where they run, and fails on a skip that names no absent hardware."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.longest_first import LONGEST, rank
from support.skip_gate import INSTALLED, expects_zentorch, unexpected

import qcompile.hardware.native_library
from qcompile.hardware import KNOWN, platform

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
        ("this machine has the card", True, False),
        ("this system does not page out on request", True, False),
        ("not today", True, True),
    ],
)
def test_which_skips_are_unexpected(reason: str, zentorch_runs: bool, wrong: bool) -> None:
    assert unexpected(reason, zentorch_runs) is wrong


def reasons() -> list[tuple[str, str]]:
    """(file:line, reason) of every skip in the tests whose reason is written there; what is put in while running becomes "…"."""
    found = []
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"skip", "skipif"}:
                given = [word.value for word in node.keywords if word.arg == "reason"] or (
                    node.args if node.func.attr == "skip" else []
                )
                parts = given[0].values if given and isinstance(given[0], ast.JoinedStr) else given[:1]
                words = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts]
                if any(word != "…" for word in words):
                    found.append((f"{path.name}:{node.lineno}", "".join(words)))
    return found


def test_every_reason_in_the_tests_names_what_is_not_there() -> None:
    assert len(reasons()) > 15
    for place, reason in reasons():
        known = INSTALLED.search(reason) or not unexpected(reason, zentorch_runs=False)
        assert known, f"{place}: CI would fail on {reason!r}, which names no hardware"


@pytest.mark.parametrize(
    ("name", "expected"), [("zen4", True), ("zen5", True), ("x86-64-avx512", False), ("x86-64-amx", False), ("aarch64", False)]
)
def test_ci_expects_zentorch_where_the_platform_would_use_it(name: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on Intel with AVX-512: the gate and the Makefile ask the same question as the back end."""
    monkeypatch.setattr(sys.modules["qcompile.hardware"], "platform", lambda: KNOWN[name])
    assert expects_zentorch() is expected
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    assert "libraries.zentorch_release(platform())" in makefile and "avx512" not in makefile


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
    assert qcompile.hardware.native_library.missing() is None
    if expects_zentorch():
        assert platform().library("zentorch").state == "present", platform().library("zentorch").detail


def test_files_that_take_longest_are_there() -> None:
    """Under the names by which they come first."""
    for name in LONGEST:
        assert (Path(__file__).parent.parent / name).exists(), name
    places = [rank(f"{name}::test") for name in (*LONGEST, "tests/formats/test_layouts.py")]
    assert places == sorted(set(places))
