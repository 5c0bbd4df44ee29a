"""The kernels for Arm, built by a cross compiler and emulated: every level over edge shapes, on processors with and without its parts."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support.native_sources import ARM, Sources, build, for_levels, plain

EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
# Processors of the emulator, and how many of the levels generic, neon, neon_dotprod, neon_i8mm and neon_bf16 they have.
PROCESSORS = {"cortex-a72": 2, "neoverse-n1": 3, "max": 5}
PRODUCTS = 9 * 2 * 3 * 3 * 2 * 9 + 2 * 9 * 2 * 5 * 3 * 9  # of one level: see test_bounds.py
MANY = PRODUCTS - 9 * 2 * 3 * 3 * 9  # by the loops for many rows, which the generic level alone has: not those of rounded x


@pytest.fixture(autouse=True, scope="module")
def _emulated() -> None:
    if EMULATOR is None or ARM.compiler() is None:
        pytest.skip("Arm is not emulated here: Debian's qemu-user-static or g++-aarch64-linux-gnu is missing")


def sources(program: str, *names: str) -> Sources:
    return plain(f"../tests/kernels/{program}.cpp", "common/isa.cpp", "common/features_aarch64.cpp", *names)


def run(program: Path, processor: str) -> int:
    assert EMULATOR is not None
    command = [EMULATOR, "-cpu", processor, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout)


def test_products(tmp_path: Path) -> None:
    files = sources("bounds", "cpu/linear.cpp", "cpu/packed.cpp", "cpu/level_generic.cpp")
    program = build(files | for_levels("level", ARM.levels, ARM), ("-O2",), ("-static",), tmp_path, ARM)
    checked = {processor: run(program, processor) for processor in PROCESSORS}
    assert checked == {processor: PRODUCTS * levels + MANY for processor, levels in PROCESSORS.items()}


@pytest.mark.parametrize("family", ["attention", "dense", "digest", "rounding"])
def test_other_families(family: str, tmp_path: Path) -> None:
    files = sources(f"bounds_{family}", f"cpu/{family}.cpp", f"cpu/{family}_generic.cpp")
    program = build(files | for_levels(family, ARM.levels, ARM), ("-O2",), ("-static",), tmp_path, ARM)
    checked = [run(program, processor) for processor in ("cortex-a72", "max")]
    assert 0 < checked[0] <= checked[1]
