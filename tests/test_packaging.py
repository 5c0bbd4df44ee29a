"""Building: without torch it stops at once with the way out, and the library asks for no newer system than torch does."""

import importlib.util
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from support.native_weights import require_kernels

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "csrc" / "build_backend.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def given(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def find(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", find)
    monkeypatch.delenv("QCOMPILE_NO_KERNELS", raising=False)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (None, "none is visible to this build. Install torch first"),
        ("2.12.1+cpu", "qcompile wants torch<2.16,>=2.13, and torch 2.12.1+cpu is installed."),
        ("2.16.0", "and torch 2.16.0 is installed."),
        ("2.13.0+cpu", ""),
        ("2.15.0a0+git1", ""),
    ],
)
def test_a_build_knows_what_hinders_it(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str | None, words: str
) -> None:
    given(monkeypatch, version)
    found = backend.hindrance()
    assert words in found and bool(words) == bool(found)
    assert not found or "--no-build-isolation" in found


@pytest.mark.parametrize(("value", "hindered"), [("1", False), ("true", False), ("0", True), ("OFF", True), ("", True)])
def test_a_build_without_kernels_needs_no_torch(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str, hindered: bool
) -> None:
    given(monkeypatch, None)
    monkeypatch.setenv("QCOMPILE_NO_KERNELS", value)
    assert bool(backend.hindrance()) is hindered


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_every_step_of_a_build_looks_first(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    given(monkeypatch, None)
    for step in ("get_requires_for_build", "prepare_metadata_for_build", "build"):
        with pytest.raises(SystemExit, match="none is visible to this build"):
            getattr(backend, f"{step}_{kind}")("folder")


def test_a_build_tool_prints_the_sentence_alone(tmp_path: Path) -> None:
    """As under build isolation: only what builds is there, no torch."""
    for name in ("packaging", "scikit_build_core", "pathspec"):
        (tmp_path / name).symlink_to(Path(str(metadata.distribution(name).locate_file(name))))
    code = "import build_backend; build_backend.get_requires_for_build_wheel()"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "csrc")]), "QCOMPILE_NO_KERNELS": ""}
    done = subprocess.run([sys.executable, "-S", "-c", code], check=False, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "none is visible to this build. Install torch first" in line


def test_the_library_asks_for_no_newer_system_than_torch() -> None:
    """manylinux_2_28, as torch: symbols of glibc up to 2.28 (libstdc++'s flag for one thread would ask for 2.32)."""
    require_kernels()
    spec = importlib.util.find_spec("qcompile._C")
    assert spec is not None and spec.origin is not None
    wanted = re.findall(rb"\x00GLIBC_2\.(\d+)(?=[.\x00])", Path(spec.origin).read_bytes())
    assert wanted and max(map(int, wanted)) <= 28
