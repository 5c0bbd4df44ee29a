"""Releases: what pyproject.toml, README and the code say is the same, and another release is a sentence instead of a traceback."""

import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

import qcompile
from qcompile import versions
from qcompile.errors import UnsupportedVersionError
from qcompile.torch_internals import registration

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
README = (ROOT / "README.md").read_text()


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_said", set())


def text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@pytest.mark.parametrize("library", versions.TRIED)
def test_pyproject_declares_what_was_tried(library: str) -> None:
    declared = {entry.name: entry.specifier for entry in map(Requirement, [*PROJECT["dependencies"], *EXTRAS["transformers"]])}
    first, end = map(text, versions.TRIED[library])
    assert {str(part) for part in declared[library]} == {f">={first}", f"<{end}"}


def test_every_extra_of_zentorch_names_the_release_for_one_torch() -> None:
    pairs = {}
    for name, entries in EXTRAS.items():
        if name.startswith("zentorch"):
            found = {entry.name: entry.specifier for entry in map(Requirement, entries)}
            (release,) = found["zentorch"]
            (first,) = (part.version for part in found["torch"] if part.operator == ">=")
            major, minor = map(int, first.split("."))
            assert {str(part) for part in found["torch"]} == {f">={first}", f"<{major}.{minor + 1}"}
            assert release.operator == "=="
            pairs[first] = release.version
    assert pairs == versions.ZENTORCH


def test_the_table_of_readme_says_the_same() -> None:
    table = README[README.index("| torch | zentorch |") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    (_, low), (major, end) = versions.TRIED["torch"]
    assert [row[0] for row in rows] == [f"{major}.{minor}" for minor in range(low, end)]
    assert {row[0]: row[1] for row in rows if row[1] != "none"} == versions.ZENTORCH
    for row in rows:
        assert row[2:] == [versions.tried("transformers"), versions.tried("compressed-tensors")]


def test_what_is_developed_with_is_in_the_ranges() -> None:
    for line in (ROOT / ".ci" / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        assert name not in versions.TRIED or versions.untried(name, version) == ""
    default = re.search(r"^TORCH \?= (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert default is not None and versions.untried("torch", default[1]) == ""
    assert versions.untried("torch") == "" and torch.__version__.startswith(versions.installed("torch"))


@pytest.mark.parametrize(
    ("library", "version", "wrong"),
    [
        ("torch", "2.13.0+cpu", False),
        ("torch", "2.15.1", False),
        ("torch", "2.12.1", True),
        ("torch", "2.16.0.dev20270101", True),
        ("torch", "3.0.0", True),
        ("transformers", "4.57.6", True),
        ("transformers", "5.20.0", False),
        ("transformers", "5.25.0.dev0", True),
        ("compressed-tensors", "0.15.0.1", False),
        ("compressed-tensors", "0.21.0", True),
        ("torch", "", False),  # not installed
        ("torch", "made at home", False),
    ],
)
def test_which_releases_are_untried(library: str, version: str, wrong: bool) -> None:
    sentence = versions.untried(library, version)
    assert bool(sentence) is wrong
    if wrong:
        assert f"{library} {versions.tried(library)}, and this is {version}" in sentence
        assert f'pip install "{library}>=' in sentence


def test_an_untried_release_is_mentioned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda library: "9.9")
    with pytest.warns(UserWarning, match="tried with torch 2.13 to 2.15, and this is 9.9"), versions.blamed("torch"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with versions.blamed("torch"):
            pass


@pytest.mark.parametrize("error", [ImportError("no such name"), AttributeError("no such attribute"), TypeError("no such argument")])
def test_what_fails_with_an_untried_release_says_so(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error), match=str(error)) as plain, versions.blamed("torch"):
        raise error
    assert plain.value is error  # this torch was tried: the error is something else's
    monkeypatch.setattr(versions, "installed", lambda library: "2.9.1")
    with pytest.raises(UnsupportedVersionError, match=f"torch 2.13 to 2.15, and this is 2.9.1.*{error}"), versions.blamed("torch"):
        raise error


def test_load_with_an_old_transformers_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As transformers 4.57 does: a module that the loader imports is not there."""
    monkeypatch.setattr(versions, "installed", lambda library: "4.57.6")
    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)
    monkeypatch.delitem(sys.modules, "qcompile.frontends.load", raising=False)
    for name in ("hf_quantizer", "completeness", "experts", "transformers_internals"):
        monkeypatch.delitem(sys.modules, f"qcompile.frontends.{name}", raising=False)
    with pytest.raises(UnsupportedVersionError, match=r"transformers 5\.20 to 5\.24, and this is 4\.57\.6: pip install"):
        qcompile.load(tmp_path)


class Scheme(nn.Linear):
    """A linear that looks like one of compressed-tensors'."""

    quantization_scheme = "given"


def test_prepare_mentions_only_libraries_that_the_model_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda library: "0.1")
    monkeypatch.setitem(sys.modules, "compressed_tensors", sys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.warn_about_libraries_of(nn.Sequential(nn.Linear(4, 4)))
    with pytest.warns(UserWarning, match="compressed-tensors 0.15 to 0.20, and this is 0.1"):
        versions.warn_about_libraries_of(nn.Sequential(Scheme(4, 4)))


OLD = """
import sys, warnings
from importlib import metadata
real = metadata.version
metadata.version = lambda name: "{version}" if name == "torch" else real(name)
if {broken}:
    sys.modules["torch._dynamo.backends.registry"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        import qcompile
    except ImportError as error:
        print(type(error).__name__, error)
print(*[entry.message for entry in caught if "qcompile" in str(entry.message)])
"""


@pytest.mark.parametrize(("version", "broken"), [("2.16.0", False), ("2.9.1", True)])  # broken: a private name is gone
def test_importing_beside_an_untried_torch_is_a_sentence(version: str, broken: bool) -> None:
    command = [sys.executable, "-c", OLD.format(version=version, broken=broken)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"qcompile was tried with torch 2.13 to 2.15, and this is {version}: pip install" in done.stdout
    assert "Error" not in done.stdout


NAMED = """
import sys
from importlib import metadata
metadata.entry_points = lambda *args, **named: metadata.EntryPoints()  # as if qcompile were not installed
import torch
{first}
model = torch.nn.Linear(4, 4)
compiled = torch.compile(model, backend="qcompile", options={{"rest": "eager"}})
with torch.no_grad():
    assert torch.equal(compiled(torch.ones(2, 4)), model(torch.ones(2, 4)))
assert "qcompile" in torch._dynamo.list_backends(exclude_tags=())
print("ran", "qcompile.backend" in sys.modules)
"""


@pytest.mark.parametrize("first", ["import qcompile", "import qcompile; torch._dynamo.list_backends()"])
def test_the_name_of_the_back_end_needs_no_entry_point(first: str) -> None:
    done = subprocess.run([sys.executable, "-c", NAMED.format(first=first)], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "ran True", done.stderr


def test_the_entry_point_and_the_import_name_the_same_object() -> None:
    assert PROJECT["entry-points"][registration.GROUP] == {registration.NAME: registration.OBJECT}
    found: Any = torch._dynamo.backends.registry.lookup_backend("qcompile")
    assert found is qcompile.backend.backend  # type: ignore[attr-defined]
    registration.register()  # a second time changes nothing
    assert torch._dynamo.backends.registry.lookup_backend("qcompile") is found


def test_the_package_knows_its_own_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert qcompile.__version__ == versions.installed("qcompile") != ""
    monkeypatch.setattr(qcompile, "installed", lambda _: "")
    assert qcompile.__version__ == "0+unknown"
    with pytest.raises(AttributeError, match="module 'qcompile' has no attribute 'versoin'"):
        getattr(qcompile, "versoin")  # noqa: B009 - type checkers know that it is not there
