"""No native kernel reads or writes outside its arguments: the torch-free sources under address sanitizer, over edge shapes."""

import os
import subprocess
from pathlib import Path

import pytest
from support.native_sources import FEATURES, KERNEL_TESTS, LEVELS, X86, Sources, build, compiler, for_levels, plain

ADDRESS = "-fsanitize=address"
# Checks as calls: code with a check at every load takes GCC more than twice as long to compile.
CHECKS_AS_CALLS = {"g++": ("--param", "asan-instrumentation-with-call-threshold=0")}
# Undefined behaviour is looked for in what runs everywhere only: with it, the vector code of all levels takes minutes to compile.
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
WITHOUT_VNNI = ("avx2", "avx512", "avx512_bf16")
# Of one level at least.
LEAST_PRODUCTS = (
    9 * 2 * 3 * 3 * 2 * 9 + 2 * 9 * 2 * 5 * 3 * 9
)  # shapes, bits, variants, dtypes, rounded or not, rows; with books and numbers, scales
LEAST_PLANES = 8 * 8 * 6 * 3 * 2  # shapes, bits, variants, dtypes, rows
LEAST_ATTENTION = 8 * 3 * 6 * 2 * 2  # shapes, dtypes, masks, causal or not, in one part or several
LEAST_DENSE = 14 * 3 * 2 * 2  # shapes, dtypes, rows, bias or not
LEAST_ROUNDINGS = 3 * 6 * 5 * 2  # dtypes, kinds, sizes, narrow or not
LEAST_DIGESTS = 67 * 6  # chunks, bytes more or less


def everywhere(program: str, *names: str) -> Sources:
    own = dict.fromkeys((KERNEL_TESTS / f"{program}.cpp",), UNDEFINED)
    return own | plain("common/isa.cpp", FEATURES, *names, flags=UNDEFINED)


# Loops that no level of this processor may have, in plain C++.
WIDE = {KERNEL_TESTS / "wide_strips.cpp": ()} if X86 else {}


def products() -> Sources:
    trap = {KERNEL_TESTS / "vnni_trap.cpp": ()} if X86 else {}
    sources = everywhere("bounds", "cpu/linear.cpp", "cpu/packed.cpp", "cpu/level_generic.cpp")
    return sources | trap | WIDE | for_levels("level", LEVELS)


def planes() -> Sources:
    names = ("cpu/planes_kernels.cpp", "cpu/planes.cpp", "cpu/packed.cpp", "cpu/planes_generic.cpp")
    return everywhere("bounds_planes", *names) | WIDE | for_levels("planes", WITHOUT_VNNI)


def unquantized(family: str) -> Sources:
    sources = everywhere(f"bounds_{family}", f"cpu/{family}.cpp", f"cpu/{family}_generic.cpp")
    return sources | for_levels(family, WITHOUT_VNNI)


def rounding() -> Sources:
    sources = everywhere("bounds_rounding", "cpu/rounding.cpp", "cpu/rounding_generic.cpp")
    return sources | for_levels("rounding", ("avx2", "avx512"))


def digest() -> Sources:
    return everywhere("bounds_digest", "cpu/digest.cpp", "cpu/digest_generic.cpp") | for_levels("digest", ("avx2", "avx512"))


@pytest.mark.parametrize(
    ("sources", "least"),
    [
        (products(), LEAST_PRODUCTS),
        (planes(), LEAST_PLANES),
        (unquantized("attention"), LEAST_ATTENTION),
        (unquantized("dense"), LEAST_DENSE),
        (digest(), LEAST_DIGESTS),
        (rounding(), LEAST_ROUNDINGS),
    ],
    ids=("products", "planes", "attention", "dense", "digest", "rounding"),
)
def test_every_kernel_under_address_sanitizer(sources: Sources, least: int, tmp_path: Path) -> None:
    flags = ("-O1", ADDRESS, *CHECKS_AS_CALLS.get(Path(compiler()).name, ()))
    program = build(sources, flags, (ADDRESS, *UNDEFINED), tmp_path)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) >= least
