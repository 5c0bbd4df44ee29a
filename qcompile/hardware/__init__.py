"""The platform a graph is compiled for: this machine, or a simulated one by name."""

import platform as host
from functools import cache
from pathlib import Path
from typing import Any

import torch

from qcompile.hardware import cpu, gpu, libraries
from qcompile.hardware.cost import estimated
from qcompile.hardware.known import KNOWN, simulated
from qcompile.hardware.model import Accelerator, Library, Platform

__all__ = ["KNOWN", "Accelerator", "Library", "Platform", "describe", "detect", "platform", "summary"]


def platform(name: str | None = None) -> Platform:
    """This machine (None; looked at once), or a simulated one: a name in KNOWN, or as in "zen4,zentorch=absent"."""
    return detect() if name is None else simulated(name)


@cache
def detect(proc: Path = Path("/proc"), sys: Path = Path("/sys"), machine: str = host.machine()) -> Platform:
    """The machine described by the `proc` and `sys` folders; creates no GPU context and imports no kernel library."""
    processor = cpu.parse_cpuinfo(cpu.read_text(proc / "cpuinfo"))
    flags = processor.flags or capability_flags(torch.backends.cpu.get_cpu_capability())
    granted = "amx_tile" in flags and cpu.request_amx()
    isa = cpu.usable_isa(flags, granted)
    accelerators, build = gpu.find(sys), gpu.torch_build()
    device = gpu.usable(accelerators, build)
    return estimated(
        Platform(
            name=device_name(device) if device else cpu.processor_class(machine, processor, isa),
            machine=machine,
            vendor=processor.vendor,
            family=processor.family,
            model=processor.model,
            brand=processor.brand,
            isa=isa,
            accelerators=accelerators,
            torch_version=str(torch.__version__),
            torch_build=build,
            cores=cpu.usable_cores(sys / "fs/cgroup"),
            memory=cpu.usable_memory(proc, sys / "fs/cgroup"),
            finder=libraries.find,
        )
    )


def device_name(device: Accelerator) -> str:
    """The platform name of an accelerator: gfx1100, cuda-sm90, xpu."""
    return f"cuda-{device.arch}" if device.kind == "cuda" else device.arch


def capability_flags(capability: str) -> frozenset[str]:
    """Flags that torch's own answer implies, for systems without /proc/cpuinfo (macOS, Windows)."""
    avx2 = frozenset({"avx", "avx2", "fma"})
    table = {"AVX2": avx2, "AVX512": avx2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    return table.get(capability, frozenset())


def describe(where: Platform | None = None) -> dict[str, Any]:
    """A platform as plain JSON types, with the states of all known libraries (which imports them where they may run)."""
    return (where or platform()).describe(libraries.LIBRARIES)


def summary(where: Platform | None = None) -> str:
    """A platform as a few lines of text."""
    chosen = where or platform()
    sets = ", ".join(flag for flag in SHOWN if flag in chosen.isa) or "none that matter here"
    devices = ", ".join(f"{device.arch} ({device.source})" for device in chosen.accelerators) or "none"
    memory = chosen.memory / 2**30
    lines = [
        f"{chosen.name}{' (simulated)' if chosen.simulated else ''}: {chosen.brand or chosen.vendor or chosen.machine}",
        f"  processor     {chosen.vendor} family {chosen.family} model {chosen.model}, {chosen.cores} cores, {memory:.1f} GiB",
        f"  instructions  {sets}",
        f"  accelerators  {devices}",
        f"  torch         {chosen.torch_version} ({chosen.torch_build} build)",
    ]
    for name in libraries.LIBRARIES:
        found = chosen.library(name)
        state = " ".join(filter(None, (found.state, found.version)))
        lines.append(f"  {name:<13} {': '.join(filter(None, (state, found.detail)))}")
    return "\n".join(lines)


X86_SHOWN = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_int8", "amx_bf16")
SHOWN = (*X86_SHOWN, "asimd", "asimddp", "i8mm", "bf16", "sve")
