"""The kernels as real gfx1100 code: the intended instructions, no spills, no scratch, LDS in bounds; stubs elsewhere."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.gfx1100 import SOURCE, CompiledKernel, NoCompilerError, assembled, compile_to, compiler, link

PRODUCTS = [
    *(f"decode_{dtype}_m{rows}" for dtype in ("f16", "bf16") for rows in (1, 2, 4, 8)),
    *(f"prefill_{dtype}_{tile}" for dtype in ("f16", "bf16") for tile in ("16x64", "32x64", "64x128", "128x128")),
]
NAMES = [f"qcompile_rdna3_{name}" for name in (*PRODUCTS, "gather", "reduce_f16", "reduce_bf16")]
PLAIN_ARGUMENTS = {"global_buffer", "by_value"}
MOST_LDS = 65536


@pytest.fixture(autouse=True, scope="module")
def _compiler() -> None:
    try:
        compiler()
    except NoCompilerError as error:
        if os.environ.get("QCOMPILE_SKIP_CLANG") == "1":
            pytest.skip("QCOMPILE_SKIP_CLANG leaves the compiler for gfx1100 out")
        pytest.fail(str(error))


@pytest.fixture(scope="module")
def kernels() -> dict[str, CompiledKernel]:
    return assembled()


def products(kernels: dict[str, CompiledKernel], path: str) -> list[CompiledKernel]:
    return [kernel for name, kernel in kernels.items() if path in name]


def test_every_kernel_is_there(kernels: dict[str, CompiledKernel]) -> None:
    assert sorted(kernels) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_resources(kernels: dict[str, CompiledKernel], name: str) -> None:
    figures = kernels[name].figures
    assert figures["vgpr_spill_count"] == 0
    assert figures["sgpr_spill_count"] == 0
    assert figures["private_segment_fixed_size"] == 0
    assert kernels[name].count("scratch_") == 0
    assert figures["wavefront_size"] == 32
    assert figures["group_segment_fixed_size"] <= MOST_LDS
    assert figures["vgpr_count"] <= 256


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_plain(kernels: dict[str, CompiledKernel], name: str) -> None:
    assert set(kernels[name].arguments) <= PLAIN_ARGUMENTS
    size = 32 if "gather" in name else 24 if "reduce" in name else 80
    assert kernels[name].figures["kernarg_segment_size"] == size


def test_decode_multiplies_with_dot2_only(kernels: dict[str, CompiledKernel]) -> None:
    for kernel in products(kernels, "decode_f16"):
        assert kernel.count(r"v_dot2acc_f32_f16|v_dot2_f32_f16|v_dual_dot2acc_f32_f16|v_dual_\S+ .*:: v_dual_dot2acc_f32_f16") >= 32
    for kernel in products(kernels, "decode_bf16"):
        assert kernel.count(r"v_dot2_f32_bf16|v_dual_dot2acc_f32_bf16") >= 64
    for kernel in products(kernels, "decode"):
        assert kernel.count("v_wmma") == 0


def test_prefill_multiplies_with_wmma_of_its_dtype(kernels: dict[str, CompiledKernel]) -> None:
    for dtype in ("f16", "bf16"):
        for kernel in products(kernels, f"prefill_{dtype}_"):
            tiles = int(kernel.name.rsplit("_", 1)[1].split("x")[0]) // 16
            per_wave = {1: 1, 2: 2, 4: 4, 8: 4}[tiles]
            assert kernel.loop().wmma == per_wave * 4 * 2
            assert kernel.count(f"v_wmma_f32_16x16x16_{dtype} ") == kernel.count("v_wmma")


@pytest.mark.parametrize("name", [name for name in NAMES if "prefill" in name])
def test_at_least_half_of_the_issue_slots_are_wmma(kernels: dict[str, CompiledKernel], name: str) -> None:
    assert kernels[name].loop().wmma_share >= 0.5


@pytest.mark.parametrize("name", [name for name in NAMES if "decode" in name or "prefill" in name])
def test_weights_come_in_128_bits_and_no_barrier_waits_for_them(kernels: dict[str, CompiledKernel], name: str) -> None:
    kernel = kernels[name]
    assert kernel.count("global_load_b128") >= 4
    for before, line in zip(kernel.lines, kernel.lines[1:], strict=False):
        if line.startswith("s_barrier"):
            assert "vmcnt" not in before
    assert not any(re.match(r"buffer_gl\d_inv|global_atomic", line) for line in kernel.lines)


def test_the_code_object_links(tmp_path: Path) -> None:
    assembly, output = tmp_path / "kernels.s", tmp_path / "kernels.co"
    compile_to(assembly, "gfx1100", "-S")
    link(assembly, output, "gfx1100")
    header = output.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == 224  # EM_AMDGPU


@pytest.mark.parametrize("architecture", ["gfx1030", "gfx942", "gfx1201"])
def test_other_architectures_get_empty_stubs(architecture: str) -> None:
    stubs = assembled(architecture)
    assert sorted(stubs) == sorted(NAMES)
    for kernel in stubs.values():
        assert kernel.count("s_endpgm") == 1
        assert kernel.count("v_|ds_|global_|flat_|buffer_|scratch_") == 0


@pytest.mark.parametrize("half", ["host", "device"])
def test_both_halves_of_a_hip_compilation(half: str) -> None:
    """The whole file, launcher included, against declarations of the few HIP names it uses: what hipcc compiles."""
    command = [
        *compiler(),
        *("-std=c++17", "-x", "hip", "--offload-arch=gfx1100", f"--cuda-{half}-only", "-nogpulib", "-nogpuinc", "-Wall", "-Werror"),
        *(f"-I{Path(__file__).parent / 'hip_declarations'}", "-fsyntax-only", str(SOURCE)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


TABLE = re.compile(r'\{"(\w+)", (?:true|false), \d+, \d+, (\d+), (\d+), .*?\{(\d+), (\d+)\}, \{(\d+), (\d+)\}\}')


def test_the_dispatch_table_tells_what_the_code_is() -> None:
    """Threads exactly; cycles and registers to a tenth with the compiler they were taken from, roughly with others."""
    margin = 0.1 if compiler()[0].endswith("clang-19") else 0.35
    rows = TABLE.findall((SOURCE.parent / "dispatch.cpp").read_text())
    assert len(rows) == len(PRODUCTS) // 2
    for path, threads, lds, *figures in rows:
        kind, _, rest = path.partition("_")
        for dtype, cycles, vgprs in (("f16", figures[0], figures[2]), ("bf16", figures[1], figures[3])):
            kernel = assembled()[f"qcompile_rdna3_{kind}_{dtype}_{rest}"]
            assert kernel.figures["max_flat_workgroup_size"] == int(threads)
            assert kernel.figures["group_segment_fixed_size"] <= int(lds) + 1024
            assert abs(kernel.loop().cycles - int(cycles)) <= margin * int(cycles)
            assert abs(kernel.figures["vgpr_count"] - int(vgprs)) <= margin * int(vgprs)
