"""No native kernel reads or writes outside its arguments: the torch-free sources under address sanitizer, over edge shapes."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
PLAIN = ("common/isa.cpp", "cpu/linear.cpp", "cpu/packed.cpp", "cpu/level_generic.cpp")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
LEVELS = {
    "cpu/level_avx2.cpp": AVX2,
    "cpu/level_avx2_vnni.cpp": (*AVX2, "-mavxvnni"),
    "cpu/level_avx2_vnni_evex.cpp": (*AVX2, "-mavx512f", "-mavx512vl", "-mavx512vnni"),
    "cpu/level_avx512.cpp": AVX512,
    "cpu/level_avx512_vnni.cpp": (*AVX512, "-mavx512vnni"),
    "cpu/level_avx512_bf16.cpp": (*AVX512, "-mavx512bf16"),
}
# Undefined behaviour is looked for in what runs everywhere only: with it, the vector code of all levels takes minutes to compile.
ADDRESS = ("-fsanitize=address",)
UNDEFINED: tuple[str, ...] = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
LEAST_PRODUCTS = 9 * 2 * 3 * 3 * 2 * 9  # shapes, bits, variants, dtypes, rounded or not, rows: for one level


def compile_one(compiler: str, source: Path, flags: tuple[str, ...], to: Path) -> Path:
    target = to / f"{source.stem}.o"
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-ffp-contract=fast",
        "-w",
        *ADDRESS,
        *flags,
        f"-I{CSRC}",
        "-c",
        str(source),
        "-o",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


def test_every_kernel_under_address_sanitizer(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    sources = dict.fromkeys((*(CSRC / name for name in PLAIN), Path(__file__).with_name("bounds.cpp")), UNDEFINED)
    if platform.machine() in ("x86_64", "AMD64"):
        sources |= {CSRC / name: flags for name, flags in LEVELS.items()}
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda item: compile_one(compiler, item[0], item[1], tmp_path), sources.items()))
    program = tmp_path / "bounds"
    done = subprocess.run(
        [compiler, *ADDRESS, *UNDEFINED, *map(str, objects), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) >= LEAST_PRODUCTS
