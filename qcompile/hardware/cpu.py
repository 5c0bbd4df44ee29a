"""The processor as the operating system shows it: parsers that take text or a folder, so made-up machines can be tested."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

# linux/arch/x86/include/uapi/asm/prctl.h; XFEATURE_XTILEDATA is state component 18 (Intel SDM volume 1, 13.1).
SYS_ARCH_PRCTL = 158
ARCH_REQ_XCOMP_PERM = 0x1023
XFEATURE_XTILEDATA = 18


@dataclass(frozen=True, slots=True)
class Cpu:
    """vendor as CPUID spells it ("AuthenticAMD"); family and model with their extended parts added in; flags as in Linux."""

    vendor: str = ""
    family: int = 0
    model: int = 0
    brand: str = ""
    flags: frozenset[str] = frozenset()


def parse_cpuinfo(text: str) -> Cpu:
    """The first processor of a /proc/cpuinfo text (x86 "flags", Arm "Features"); missing or odd fields stay empty."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    implementer = fields.get("CPU implementer", "")
    return Cpu(
        vendor=fields.get("vendor_id", f"Arm implementer {implementer}" if implementer else ""),
        family=_integer(fields.get("cpu family", "")),
        model=_integer(fields.get("model", fields.get("CPU part", ""))),
        brand=fields.get("model name", ""),
        flags=frozenset((fields.get("flags") or fields.get("Features") or "").split()),
    )


def _integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0


def request_amx() -> bool:
    """Ask Linux for permission to use AMX tiles in this process (Documentation/arch/x86/xstate.rst); True if granted."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return int(libc.syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) == 0
    except (OSError, AttributeError):
        return False


def usable_isa(flags: frozenset[str], amx_granted: bool) -> frozenset[str]:
    """The flags a process may use: Linux hides what it does not save on a context switch, AMX tiles need a permission besides."""
    return flags if amx_granted else frozenset(flag for flag in flags if not flag.startswith("amx"))


def processor_class(machine: str, cpu: Cpu, isa: frozenset[str]) -> str:
    """The name of the closest known platform for a processor and its usable instruction sets: "zen4", "x86-64-amx", "aarch64"."""
    if machine in ("aarch64", "arm64"):
        return "aarch64"
    if machine not in ("x86_64", "amd64", "AMD64"):
        return machine or "unknown"
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= isa
    if cpu.vendor == "AuthenticAMD" and cpu.family >= 23:
        if avx512:
            return "zen4" if cpu.family == 25 else "zen5"
        return "zen3"
    if avx512:
        return "x86-64-amx" if "amx_int8" in isa else "x86-64-avx512"
    return "x86-64-avx2" if {"avx2", "fma"} <= isa else "x86-64"


def usable_cores(cgroup: Path) -> int:
    """Processors this process may run on: the affinity mask, cut by the control group's cpu.max."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota, _, period = read_text(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit() and int(period) > 0:
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return max(1, cores)


def usable_memory(proc: Path, cgroup: Path) -> int:
    """Bytes of memory this process may use: MemTotal, cut by the control group's memory.max; 0 if neither can be read."""
    total = 0
    for line in read_text(proc / "meminfo").splitlines():
        if line.startswith("MemTotal:"):
            total = _integer(line.split()[1]) * 1024
    limit = read_text(cgroup / "memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() and total else total


def read_text(path: Path) -> str:
    """A file's text; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
