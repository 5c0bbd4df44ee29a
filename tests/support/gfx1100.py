"""Compiles csrc/rocm for an AMD architecture without ROCm, and reads kernels, resources and inner loops from the assembly."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = Path(__file__).parents[2] / "csrc/rocm/gptq_gemm_rdna3.hip"
FLAGS = (
    "-std=c++17",
    "-x",
    "hip",
    "--cuda-device-only",
    "--no-gpu-bundle-output",
    "-nogpulib",
    "-nogpuinc",
    "-O3",
    "-DQCOMPILE_DEVICE_ONLY",
    "-Wall",
    "-Wextra",
    "-Werror",
)
WMMA_CYCLES = 32  # 16 x 16 x 16 products at 256 operations per SIMD and cycle: 512 per compute unit, as AMD publishes


class NoCompilerError(RuntimeError):
    """Neither clang 19 nor the wheel ziglang is installed."""

    def __init__(self) -> None:
        super().__init__("no compiler for gfx1100: run .ci/install-clang, which says what it installs")


@dataclass(frozen=True)
class Loop:
    """The innermost loop of a kernel that holds its products: issued instructions by class."""

    counts: Counter[str]

    @property
    def wmma(self) -> int:
        return self.counts["wmma"]

    @property
    def cycles(self) -> int:
        """Issue cycles of one SIMD for one wave and turn: 1 per vector instruction (a dual one counts once), 32 per WMMA."""
        return WMMA_CYCLES * self.wmma + self.counts["vector"] + self.counts["dual"]

    @property
    def wmma_share(self) -> float:
        return WMMA_CYCLES * self.wmma / self.cycles


@dataclass
class CompiledKernel:
    """One kernel of the assembly: its instructions, and the figures of its metadata (vgpr_count, group_segment_fixed_size, ...)."""

    name: str
    lines: list[str]
    figures: dict[str, int] = field(default_factory=dict[str, int])
    arguments: list[str] = field(default_factory=list[str])

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, line)) for line in self.lines)

    def loop(self) -> Loop:
        """The smallest loop among those with the most products (WMMA if the kernel has any)."""
        product = "v_wmma" if self.count("v_wmma") else ".*dot2"
        labels = {line.removesuffix(":"): at for at, line in enumerate(self.lines) if line.endswith(":")}
        best: tuple[int, int, int] = (0, 0, 0)
        for end, line in enumerate(self.lines):
            match = re.match(r"s_c?branch\S*\s+(\.LBB\S+)", line)
            if match and labels[match[1]] <= end:
                begin = labels[match[1]]
                products = sum(bool(re.match(product, inner)) for inner in self.lines[begin:end])
                best = max(best, (products, begin - end, begin))
        products, size, begin = best
        assert products > 0, f"{self.name} has no loop with products"
        return Loop(Counter(kind(line) for line in self.lines[begin : begin - size] if not line.endswith(":")))


def kind(instruction: str) -> str:
    """Class of an instruction: wmma, dual, vector, lds, memory, scratch, scalar."""
    for prefix, name in (("v_wmma", "wmma"), ("v_dual", "dual"), ("v_", "vector"), ("ds_", "lds"), ("scratch_", "scratch")):
        if instruction.startswith(prefix):
            return name
    return "memory" if instruction.startswith(("global_", "flat_", "buffer_")) else "scalar"


def compiler() -> tuple[str, ...]:
    """The command of a clang that knows gfx1100, with the flags that only it needs; NoCompilerError if there is none."""
    chosen = os.environ.get("QCOMPILE_TEST_CLANG")  # for trying another compiler by hand
    if chosen:
        return (chosen,)
    if found := shutil.which("clang-19"):
        return (found,)
    zig = find_spec("ziglang")
    if zig is None or zig.origin is None:
        raise NoCompilerError
    headers = Path(zig.origin).parent / "lib/include"
    return (sys.executable, "-m", "ziglang", "clang", "-ffreestanding", "-isystem", str(headers))


def compile_to(output: Path, architecture: str, *extra: str) -> None:
    """Compile the kernels for `architecture` to `output` (assembly with -S, otherwise an object)."""
    command = [*compiler(), *FLAGS, f"--offload-arch={architecture}", *extra, str(SOURCE), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def link(assembly: Path, output: Path, architecture: str) -> None:
    """Assemble and link to a code object, as the card's driver loads it."""
    command, middle = compiler(), output.with_suffix(".o")
    zig = "ziglang" in command
    base = command[: command.index("clang") + 1] if zig else command
    linker = (*command[: command.index("clang")], "ld.lld") if zig else ("ld.lld-19",)
    subprocess.run(
        [*base, "-target", "amdgcn-amd-amdhsa", f"-mcpu={architecture}", "-c", str(assembly), "-o", str(middle)], check=True
    )
    subprocess.run([*linker, "-shared", str(middle), "-o", str(output)], check=True)


def read_assembly(text: str) -> dict[str, CompiledKernel]:
    """The kernels of an assembly file by name."""
    kernels: dict[str, CompiledKernel] = {}
    for match in re.finditer(r"^(qcompile_rdna3_\w+):.*?\n(.*?)^\.Lfunc_end", text, re.MULTILINE | re.DOTALL):
        stripped = (re.sub(r"\s*;.*", "", line).strip() for line in match[2].splitlines())
        lines = [line for line in stripped if line and (line.endswith(":") or not line.startswith("."))]
        kernels[match[1]] = CompiledKernel(match[1], lines)
    for entry in re.split(r"^  - \.args:", text.partition(".amdgpu_metadata")[2], flags=re.MULTILINE)[1:]:
        name = re.search(r"^ {4}\.name: +(\w+)", entry, re.MULTILINE)
        assert name is not None
        kernel = kernels[name[1]]
        kernel.figures = {key: int(value) for key, value in re.findall(r"^ {4}\.(\w+): +(\d+)$", entry, re.MULTILINE)}
        kernel.arguments = re.findall(r"\.value_kind: +(\w+)", entry)
    return kernels


@cache
def assembled(architecture: str = "gfx1100") -> dict[str, CompiledKernel]:
    """The kernels as compiled for `architecture`; compiled once per process."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "kernels.s"
        compile_to(output, architecture, "-S")
        return read_assembly(output.read_text())
