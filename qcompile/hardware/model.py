"""What a platform is: the processor, its accelerators, the libraries, and the limits that the cost model uses."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

LIBRARY_STATES = ("present", "absent", "broken", "ineligible")


@dataclass(frozen=True, slots=True)
class Library:
    """One optional kernel library.

    state: "present" (loaded, its operators are registered), "absent" (not installed), "broken" (installed but does not load),
    "ineligible" (not looked for, because this machine could not run it). detail: one sentence with the way out, "" if present.
    """

    name: str
    state: str
    version: str = ""
    detail: str = ""

    @property
    def present(self) -> bool:
        return self.state == "present"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU. kind: "rocm", "cuda" or "xpu"; arch: "gfx1100", "sm90", "xpu"; source: which detector found it."""

    kind: str
    arch: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The machine a graph is compiled for.

    name        a key of `known.KNOWN` where one fits: the accelerator if this torch can use it, otherwise the processor class
    isa         instruction sets by their Linux flag names ("avx2", "avx512_bf16", "amx_int8", "asimd"), only those that the
                operating system lets this process use
    torch_build "cpu", "rocm", "cuda" or "xpu"
    cores, memory   what this process may use (affinity, control groups), memory in bytes
    bandwidth, bf16_flops, int8_ops   per second, all cores together; estimates unless measured
    libraries   states of a simulated platform; on this machine they are found on the first question (see `library`)
    """

    name: str
    simulated: bool = False
    machine: str = "x86_64"
    vendor: str = ""
    family: int = 0
    model: int = 0
    brand: str = ""
    isa: frozenset[str] = frozenset()
    accelerators: tuple[Accelerator, ...] = ()
    torch_version: str = ""
    torch_build: str = "cpu"
    cores: int = 1
    memory: int = 0
    bandwidth: float = 16e9
    bf16_flops: float = 100e9
    int8_ops: float = 100e9
    libraries: tuple[Library, ...] = ()
    finder: Callable[["Platform", str], Library] | None = field(default=None, compare=False, repr=False)

    @property
    def is_amd(self) -> bool:
        return self.vendor == "AuthenticAMD"

    @property
    def has_avx512(self) -> bool:
        """The subset that every AVX-512 kernel here is compiled for: F, BW, DQ and VL."""
        return {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= self.isa

    @property
    def device(self) -> str:
        """The type of torch device a model is on to be served by this platform: "cpu", "cuda" (ROCm too) or "xpu"."""
        if not self.gpu(self.torch_build):
            return "cpu"
        return "cuda" if self.torch_build == "rocm" else self.torch_build

    def gpu(self, kind: str) -> tuple[str, ...]:
        """Architectures of the accelerators of one kind ("rocm", "cuda", "xpu"), in device order."""
        return tuple(device.arch for device in self.accelerators if device.kind == kind)

    def library(self, name: str) -> Library:
        """The state of one library; on this machine the first question may import it."""
        for library in self.libraries:
            if library.name == name:
                return library
        if self.finder is not None:
            return self.finder(self, name)
        return Library(name, "absent", detail=f"{name} is not part of the simulated platform {self.name}")

    def with_library(self, library: Library) -> "Platform":
        """This platform with one library's state replaced."""
        return replace(self, libraries=(*(entry for entry in self.libraries if entry.name != library.name), library))

    def describe(self, libraries: tuple[str, ...]) -> dict[str, Any]:
        """Everything as plain JSON types; `libraries` names those to be asked for."""
        return {
            "name": self.name,
            "simulated": self.simulated,
            "machine": self.machine,
            "cpu": {"vendor": self.vendor, "family": self.family, "model": self.model, "brand": self.brand},
            "isa": sorted(self.isa),
            "accelerators": [{"kind": a.kind, "arch": a.arch, "source": a.source} for a in self.accelerators],
            "torch": {"version": self.torch_version, "build": self.torch_build},
            "cores": self.cores,
            "memory_bytes": self.memory,
            "limits": {"bandwidth": self.bandwidth, "bf16_flops": self.bf16_flops, "int8_ops": self.int8_ops},
            "libraries": {
                name: {"state": found.state, "version": found.version, "detail": found.detail}
                for name in libraries
                for found in (self.library(name),)
            },
        }
