"""The repository keeps its own rules: short files, telling names, one import path, a test file for each part, complete wheels."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qcompile.frontends import FRONT_DOORS
from qcompile.passes import PIPELINE
from qcompile.recognize.readers import READERS
from qcompile.targets.registry import TARGETS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("passes", "qcompile", "csrc", "tests", "demo", "bench", "docs", ".ci")
MOST_LINES = 400
BANNED_WORDS = {"new", "old", "utils", "util", "misc", "helpers", "helper", "helpers2", "common2", "tmp", "temp", "stuff"}
# Where this was written is nobody's business; put together here so that this file passes its own test.
PRIVATE = re.compile(
    "|".join(("/wo" + "rk/", "/ho" + "me/", "/ro" + "ot/", "/opt/" + "pypi", "pypi" + "-more", "/tmp/" + "bash_jobs"))
)
TEXT = {".py", ".md", ".toml", ".txt", ".in", ".cpp", ".h", ".hip", ".cu", ".cmake", ".expected", ".yaml", ".yml", ""}


def files(*suffixes: str) -> list[Path]:
    """Our own files; qcompile/passes is a link to passes and not followed."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        for here, folders, names in os.walk(ROOT / folder):
            folders[:] = [name for name in folders if name != "__pycache__"]
            found += [Path(here) / name for name in names]
    return sorted(path for path in found if path.suffix in suffixes)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_are_found() -> None:
    assert len(files(".py")) > 60
    assert len(files(".cpp", ".h")) > 5


@pytest.mark.parametrize("path", files(".py", ".cpp", ".h", ".hip", ".cu"), ids=name_of)
def test_file_is_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES, f"{name_of(path)} has {lines} lines, the cap is {MOST_LINES}: split it by job"


def test_names_say_what_not_when() -> None:
    for path in files(".py", ".cpp", ".h", ".hip", ".cu"):
        words = set(re.split(r"[_\W]+", path.stem.lower()))
        assert not words & BANNED_WORDS, name_of(path)
        assert not any(re.fullmatch(r"v\d+", word) for word in words), name_of(path)


def test_every_module_says_what_is_true() -> None:
    for path in files(".py"):
        if path.name == "__init__.py" and not path.read_text().strip():
            continue
        assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


def test_imports_are_absolute_and_passes_have_one_path() -> None:
    for path in files(".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
                assert (node.module or "").split(".")[0] != "passes", f"{name_of(path)}:{node.lineno}: import qcompile.passes"
            elif isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "passes" for alias in node.names), f"{name_of(path)}:{node.lineno}"


def test_only_options_reads_the_environment() -> None:
    for path in files(".py"):
        inside = name_of(path).startswith(("qcompile/", "passes/")) and name_of(path) != "qcompile/options.py"
        if inside:
            assert not re.search(r"os\.environ|os\.getenv|getenv\(", path.read_text()), f"{name_of(path)} reads the environment"


def test_nothing_names_the_place_it_was_made_in() -> None:
    for path in files(*TEXT):
        found = PRIVATE.search(path.read_text(encoding="utf-8", errors="replace"))
        assert found is None, f"{name_of(path)} contains {found.group() if found else ''}"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("passes", step.name) for step in PIPELINE),
        *(("targets", name) for name in TARGETS),
        *(("readers", name) for name in READERS),
        *(("frontends", name) for name in FRONT_DOORS),
    ],
)
def test_each_part_is_tested(kind: str, name: str) -> None:
    """A pass has a test file of its name; kernels, readers and front doors share files by subject, which name them."""
    folder = ROOT / ("passes" if kind == "passes" else f"qcompile/{kind}")
    source = ROOT / f"{READERS[name].replace('.', '/')}.py" if kind == "readers" else folder / f"{name}.py"
    assert source.exists(), f"{name_of(source)} is listed and does not exist"
    if kind == "passes":
        assert (ROOT / "tests" / "passes" / f"test_{name}.py").exists(), f"{name_of(source)} has no tests/passes/test_{name}.py"
    else:
        tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path.name != "test_layout.py"]
        assert any(name in path.read_text() for path in tests), f"no test names {name_of(source)}"


def test_every_pass_is_in_the_pipeline() -> None:
    listed = {step.name for step in PIPELINE}
    assert listed == {path.stem for path in (ROOT / "passes").glob("*.py")} - {"__init__"}


def test_passes_folder_is_linked_into_the_package() -> None:
    assert (ROOT / "qcompile" / "passes" / "__init__.py").samefile(ROOT / "passes" / "__init__.py")


def test_pure_python_wheel_is_complete(tmp_path: Path) -> None:
    """Without a compiler the wheel is py3-none-any and holds every module, the passes too."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    env = os.environ | {"QCOMPILE_NO_KERNELS": "1", "PIP_NO_INDEX": "1"}
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, env=env, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in files(".py"):
        name = name_of(path)
        if name.startswith("passes/"):
            assert f"qcompile/{name}" in inside
        elif name.startswith("qcompile/"):
            assert name in inside
    assert "qcompile/py.typed" in inside
    assert not any(name.startswith(("passes/", "tests/", "csrc/", "demo/")) for name in inside)
    assert not any(name.endswith(".so") for name in inside)
    entry_points = next(name for name in inside if name.endswith("entry_points.txt"))
    assert "qcompile = qcompile.backend:backend" in zipfile.ZipFile(wheel).read(entry_points).decode()
