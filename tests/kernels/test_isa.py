"""The levels follow what the processor has; the level for AVX-VNNI, also where only its twin of AVX-512 can run."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from support.native_weights import LEVELS

from qcompile.hardware.cpu import parse_cpuinfo, read_text

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FLAGS = parse_cpuinfo(read_text(Path("/proc/cpuinfo"))).flags
needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86-64 processor")
needs_native = pytest.mark.skipif(not LEVELS, reason="needs the compiled kernels")
OPS = torch.ops.qcompile


@needs_native
@needs_x86
def test_the_processor_is_asked_rightly() -> None:
    """Against Linux, which asks CPUID in its own way and takes away what it does not save."""
    ours = set(str(OPS.native_cpu_features()).split(","))
    for name in ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16"):
        assert (name in ours) == (name in FLAGS), name
    assert ("avx512" in ours) == ({"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= FLAGS)
    assert ("avx2_vnni" in LEVELS) == bool({"avx_vnni", "avx512_vnni"} & FLAGS)


@needs_native
@pytest.mark.skipif("avx2_vnni" not in LEVELS, reason="needs VNNI")
@pytest.mark.parametrize("m", [1, 2, 5, 6, 7, 12, 13, 40])
def test_256_and_512_bits_of_vnni_give_the_same_bits(m: int) -> None:
    """Integers until the end of a group; the float arithmetic after that is the same."""
    if "avx512_vnni" not in FLAGS:
        pytest.skip("needs avx512_vnni")
    generator = torch.Generator().manual_seed(m)
    n, k = 49, 200
    x = torch.randn(m, k, generator=generator)
    narrow, wide, plain = (LEVELS.index(name) for name in ("avx2_vnni", "avx512", "avx2"))
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)
    packed = OPS.native_int8_pack(codes, torch.rand(n, 1, generator=generator) + 0.1, None, k)

    def int8(level: int) -> torch.Tensor:
        y: torch.Tensor = OPS.native_int8_linear(x, packed, None, None, None, None, n, k, k, 1, 127.0, -127.0, False, level=level)
        return y

    assert torch.equal(int8(narrow), int8(wide)) and torch.allclose(int8(narrow), int8(plain), rtol=1e-5, atol=1e-4)
    nibbles = OPS.native_int4_pack(codes >> 4, torch.rand(n, 5, generator=generator) + 0.1, None, 40)

    def int4(level: int) -> torch.Tensor:
        y: torch.Tensor = OPS.native_int4_a8_linear(
            x, nibbles, None, None, None, None, n, k, 40, 3, 127.0, -127.0, False, level=level
        )
        return y

    assert torch.allclose(int4(narrow), int4(wide), rtol=1e-5, atol=1e-4)


@needs_x86
@pytest.mark.parametrize("name", ["avx2", "avx2_vnni"])
def test_a_file_for_avx2_holds_nothing_of_avx512(name: str, tmp_path: Path) -> None:
    """Also checks, by the assembler's own words, that VPDPBUSD has the VEX prefix in the file for AVX-VNNI."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    flags = ["-mavx2", "-mfma", "-mf16c", *(["-mavxvnni"] if name == "avx2_vnni" else [])]
    source, target = CSRC / "cpu" / f"level_{name}.cpp", tmp_path / "level.s"
    command = [compiler, "-std=c++17", "-O2", "-w", *flags, f"-I{CSRC}", "-S", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    text = target.read_text()
    assert not re.search(r"%(zmm|k[1-7]\b|[xy]mm(1[6-9]|2\d|3[01]))", text)
    products = re.findall(r"^.*vpdpbusd.*$", text, re.MULTILINE)
    assert bool(products) == (name == "avx2_vnni")
    assert all("{vex}" in line or compiler.endswith("clang++") for line in products)
