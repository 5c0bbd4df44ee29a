"""Builds programs of the tests with the torch-free native sources, each file with the flags of csrc/cpu/levels.txt."""

import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
KERNEL_TESTS = Path(__file__).resolve().parents[1] / "kernels"
X86 = platform.machine() in ("x86_64", "AMD64")
# Level -> flags, by the table that CMake reads; on another architecture its own levels.
LEVELS = {
    name: tuple(flags)
    for line in (CSRC / "cpu" / "levels.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for architecture, name, *flags in [line.split()]
    if architecture == ("x86_64" if X86 else platform.machine())
}
FEATURES = f"common/features_{'x86_64' if X86 else 'none'}.cpp"

Sources = dict[Path, tuple[str, ...]]


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def plain(*names: str, flags: tuple[str, ...] = ()) -> Sources:
    """Files of csrc for any processor."""
    return dict.fromkeys((CSRC / name for name in names), flags)


def for_levels(family: str, levels: Iterable[str]) -> Sources:
    """The files of one family that are compiled for an instruction set."""
    return {CSRC / "cpu" / f"{family}_{level}.cpp": LEVELS[level] for level in levels if level in LEVELS}


def build(sources: Mapping[Path, tuple[str, ...]], flags: tuple[str, ...], link: tuple[str, ...], to: Path) -> Path:
    """Compiles every file with `flags` and its own, links, and returns the program."""
    command = (compiler(), "-std=c++17", "-ffp-contract=fast", "-w", f"-I{CSRC}", f"-I{KERNEL_TESTS}")

    def compile_one(item: tuple[Path, tuple[str, ...]]) -> str:
        source, own = item
        target = to / f"{source.stem}.o"
        _succeed((*command, *flags, *own, "-c", str(source), "-o", str(target)))
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources.items()))
    program = to / "program"
    _succeed((command[0], *link, *objects, "-o", str(program)))
    return program


def _succeed(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
