"""States of optional libraries: every way an import can fail is an answer, and importing leaves no trace."""

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qcompile.hardware import libraries, platform
from qcompile.hardware.model import Library, Platform


def raiser(error: BaseException) -> Callable[[str], Any]:
    def importer(_name: str) -> Any:
        raise error

    return importer


MISSING = ModuleNotFoundError("No module named 'zentorch'", name="zentorch")
DEPENDENCY = ModuleNotFoundError("No module named 'deprecated'", name="deprecated")


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (MISSING, "absent", "not installed"),
        (DEPENDENCY, "broken", "lacks the module 'deprecated'"),
        (ImportError("Incompatible PyTorch version 2.15.0\nmore"), "broken", "Incompatible PyTorch version 2.15.0"),
        (OSError("libzentorch.so: undefined symbol: _ZN3c10"), "broken", "built for another torch"),
        (RuntimeError("surprise"), "broken", "raises RuntimeError at import (surprise)"),
        (AttributeError(""), "broken", "raises AttributeError"),
    ],
)
def test_every_failure_is_a_state_with_a_way_out(error: Exception, state: str, words: str) -> None:
    found = libraries.load("zentorch", raiser(error), libraries.zentorch_hint("2.13.0+cpu"))
    assert (found.state, found.present) == (state, False)
    assert words in found.detail
    assert 'pip install "zentorch==2.13.0.2"' in found.detail


def test_a_loaded_library_has_a_version_and_nothing_to_explain() -> None:
    found = libraries.load("some", lambda _name: SimpleNamespace(__version__="1.2"), "hint")
    assert found == Library("some", "present", "1.2")


@pytest.mark.parametrize(
    ("version", "release"), [("2.13.0+cpu", "2.13.0.2"), ("2.14.1+cu130", "2.14.0.1"), ("2.14.0a0+git1", "2.14.0.1")]
)
def test_the_hint_names_the_build_for_this_torch(version: str, release: str) -> None:
    assert f'pip install "zentorch=={release}"' in libraries.zentorch_hint(version)


@pytest.mark.parametrize("version", ["2.15.0", "2.12.1+cpu", "odd"])
def test_no_hint_names_a_build_that_does_not_exist(version: str) -> None:
    found = libraries.zentorch_hint(version)
    assert "pip install" not in found
    assert f"no release of zentorch for torch {version.rpartition('.')[0] or version} is known here" in found
    assert "2.13.0.2 for torch 2.13, 2.14.0.1 for torch 2.14" in found


@pytest.mark.parametrize(
    ("name", "torch_version", "release"),
    [
        ("zen4", "2.13.0", "2.13.0.2"),
        ("zen5", "2.14.1+cu130", "2.14.0.1"),
        ("zen4", "2.15.0", ""),
        ("x86-64-avx512", "2.13.0", ""),  # Intel with AVX-512
        ("x86-64-amx", "2.14.1", ""),
        ("zen3", "2.13.0", ""),
        ("aarch64", "2.13.0", ""),
    ],
)
def test_which_release_belongs_on_a_machine(name: str, torch_version: str, release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert libraries.zentorch_release(replace(platform(name), torch_version=torch_version)) == release


def test_no_release_is_for_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert libraries.zentorch_release(platform("zen4")) == ""


@pytest.mark.parametrize("name", ["x86-64-avx512", "zen3", "x86-64-avx2", "aarch64"])
def test_zentorch_is_not_even_imported_on_other_processors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "import_quietly", raiser(AssertionError("imported")))
    where = replace(platform(name), simulated=False, libraries=(), finder=libraries.find)
    found = where.library("zentorch")
    assert found.state == "ineligible"
    assert "zentorch needs" in found.detail


def test_all_hardware_reasons_are_given() -> None:
    assert len(libraries.zentorch_hardware(platform("x86-64-avx2"))) == 2
    assert len(libraries.zentorch_hardware(platform("zen3"))) == 1
    assert libraries.zentorch_hardware(platform("zen5")) == ()


@pytest.mark.parametrize("error", [MISSING, OSError("undefined symbol")])
def test_an_eligible_machine_tells_absent_from_broken(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "import_quietly", raiser(error))
    libraries.find.cache_clear()
    where = Platform(name="made up", vendor="AuthenticAMD", isa=platform("zen4").isa, torch_version="2.13.0", finder=libraries.find)
    try:
        assert where.library("zentorch").state == ("absent" if error is MISSING else "broken")
    finally:
        libraries.find.cache_clear()


def test_importing_leaves_the_root_logger_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()

    def configure(_name: str) -> str:
        root.addHandler(logging.NullHandler())
        root.setLevel(logging.DEBUG)
        return "module"

    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(libraries, "import_module", configure)
    assert libraries.import_quietly("anything") == "module"
    assert (root.handlers, root.level) == (handlers, level)


def test_xpu_kernels_are_not_looked_for_without_an_xpu() -> None:
    assert libraries.find(platform("zen4"), "vllm_xpu_kernels").state == "ineligible"


def test_vllm_is_never_imported_from_here() -> None:
    found = libraries.find(platform("zen4"), "vllm")
    assert (found.state, "vllm" in sys.modules) == ("absent", False)


def test_an_unknown_library_is_absent() -> None:
    assert libraries.find(platform("zen4"), "nothing").state == "absent"


PROBE = """
import logging, os, threading, warnings
import torch, torch._inductor.config as inductor, torch._dynamo.config as dynamo
from qcompile.hardware import platform
def state():
    own = ("aot_inductor.custom_ops_to_c_shims", "_cache_config_ignore_prefix")  # see import_quietly
    settings = {key: repr(value) for key, value in inductor.get_config_copy().items() if key not in own}
    root = logging.getLogger()
    return (settings, dynamo.get_config_copy(), dict(os.environ), list(warnings.filters), list(root.handlers), root.level,
            torch.get_num_threads(), threading.active_count())
before = state()
import sys
here = platform()
assert "zentorch" not in sys.modules, "looked at too early"
found = here.library("zentorch")
after = state()
print(found.state, [b for b, a in zip(before, after) if a != b])
"""


def test_asking_for_zentorch_changes_no_setting_of_the_process() -> None:
    if not libraries.zentorch_release(platform()):
        pytest.skip("zentorch needs an AMD processor with AVX-512, and a torch that it is built for")
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "present []\n"
