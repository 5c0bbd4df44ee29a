"""Builds programs of the tests with the torch-free native sources, each file with the flags of csrc/cpu/levels.txt."""

import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
KERNEL_TESTS = Path(__file__).resolve().parents[1] / "kernels"
X86 = platform.machine() in ("x86_64", "AMD64")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What programs are built for: its levels with their flags, by the table that CMake reads, and the compilers that may do it."""

    name: str
    compilers: tuple[str, ...]

    @property
    def levels(self) -> dict[str, tuple[str, ...]]:
        lines = (CSRC / "cpu" / "levels.txt").read_text().splitlines()
        rows = [line.split() for line in lines if line and not line.startswith("#")]
        return {name: tuple(flags) for architecture, name, *flags in rows if architecture == self.name}

    def compiler(self) -> str | None:
        return next((found for name in self.compilers if (found := shutil.which(name))), None)


HERE = Architecture("x86_64" if X86 else platform.machine(), ("g++", "clang++"))
ARM = Architecture("aarch64", ("aarch64-linux-gnu-g++", *(f"aarch64-linux-gnu-g++-{version}" for version in (14, 13, 12))))
LEVELS = HERE.levels
FEATURES = f"common/features_{HERE.name if HERE.levels else 'none'}.cpp"

Sources = dict[Path, tuple[str, ...]]


def compiler() -> str:
    found = HERE.compiler()
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def plain(*names: str, flags: tuple[str, ...] = ()) -> Sources:
    """Files of csrc for any processor."""
    return dict.fromkeys((CSRC / name for name in names), flags)


def for_levels(family: str, levels: Iterable[str], target: Architecture = HERE) -> Sources:
    """The files of one family that are compiled for an instruction set; levels that leave the family to others have none."""
    files = {level: CSRC / "cpu" / f"{family}_{level}.cpp" for level in levels if level in target.levels}
    return {file: target.levels[level] for level, file in files.items() if file.is_file()}


def build(
    sources: Mapping[Path, tuple[str, ...]], flags: tuple[str, ...], link: tuple[str, ...], to: Path, target: Architecture = HERE
) -> Path:
    """Compiles every file with `flags` and its own, links, and returns the program."""
    command = (target.compiler() or compiler(), "-std=c++17", "-ffp-contract=fast", "-w", f"-I{CSRC}", f"-I{KERNEL_TESTS}")

    def compile_one(item: tuple[Path, tuple[str, ...]]) -> str:
        source, own = item
        made = to / f"{source.stem}.o"
        _succeed((*command, *flags, *own, "-c", str(source), "-o", str(made)))
        return str(made)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources.items()))
    program = to / "program"
    _succeed((command[0], *link, *objects, "-o", str(program)))
    return program


def _succeed(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
