"""The kernels for AVX-VNNI run their own instructions: on processors that have them, and by trap and emulation on others."""

import subprocess
from pathlib import Path

import pytest
from support.native_sources import FEATURES, KERNEL_TESTS, X86, build, for_levels, plain

from qcompile.hardware.cpu import parse_cpuinfo, read_text

FLAGS = parse_cpuinfo(read_text(Path("/proc/cpuinfo"))).flags
pytestmark = [
    pytest.mark.skipif(not X86, reason="needs an x86-64 processor"),
    pytest.mark.skipif("avx2" not in FLAGS, reason="needs a processor with AVX2"),
]
PRODUCTS = 9 * 2 * 3 * 2 * 7  # shapes, bits, variants, zero points or not, rows: with float32 alone


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = dict.fromkeys((KERNEL_TESTS / "vex_vnni.cpp", KERNEL_TESTS / "vnni_trap.cpp"), ("-O1",))
    sources = own | plain("common/isa.cpp", FEATURES, "cpu/packed.cpp", "cpu/level_generic.cpp")
    sources |= for_levels("level", ("avx2_vnni", "avx2_vnni_evex"))
    return build(sources, ("-O3",), (), tmp_path_factory.mktemp("vex_vnni"))


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False, timeout=300)


def test_the_vex_prefix_computes_what_the_others_do(program: Path) -> None:
    """Single instructions equal plain sums; products equal the twin of AVX-512 bit by bit and the generic level closely."""
    done = run(program)
    assert done.returncode == 0, done.stderr[-4000:]
    instructions, products, trapped = map(int, done.stdout.split())
    assert instructions >= 2000
    assert products >= PRODUCTS
    if "avx_vnni" in FLAGS:
        assert trapped == 0
    else:
        assert trapped > instructions


def test_any_other_instruction_ends_the_process(program: Path) -> None:
    done = run(program, "ud2")
    assert done.returncode < 0
    assert "trap: no VPDPBUSD with the VEX prefix, at the bytes 0f 0b" in done.stderr
