"""Platforms that can be simulated by name, for choosing kernels and rewriting graphs without the machine."""

from dataclasses import replace

from qcompile.errors import UnknownNameError
from qcompile.hardware.cost import estimated
from qcompile.hardware.libraries import LIBRARIES, zentorch_hint
from qcompile.hardware.model import LIBRARY_STATES, Accelerator, Library, Platform
from qcompile.versions import ZENTORCH, minor

AVX2 = frozenset({"sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
VNNI = AVX512 | {"avx512_vnni"}
ZEN4 = VNNI | {"avx512_bf16", "avx512vbmi", "avx512_vbmi2"}
ZEN5 = ZEN4 | {"avx_vnni"}
AMX = VNNI | {"avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}

SIMULATED_TORCH = "2.13.0"
PRESENT_ZENTORCH = Library("zentorch", "present", ZENTORCH[minor(SIMULATED_TORCH)])


def _cpu(name: str, vendor: str, family: int, model: int, brand: str, isa: frozenset[str], *libraries: Library) -> Platform:
    machine = "aarch64" if name == "aarch64" else "x86_64"
    return estimated(
        Platform(
            name=name,
            simulated=True,
            machine=machine,
            vendor=vendor,
            family=family,
            model=model,
            brand=brand,
            isa=isa,
            torch_version=SIMULATED_TORCH,
            cores=16,
            memory=64 << 30,
            libraries=libraries,
        )
    )


def _gpu(name: str, kind: str, arch: str, *libraries: Library) -> Platform:
    host = _cpu(name, "GenuineIntel", 6, 143, "simulated host", AMX, *libraries)
    return estimated(replace(host, accelerators=(Accelerator(kind, arch, "simulated"),), torch_build=kind))


_PLATFORMS = (
    _cpu("zen3", "AuthenticAMD", 25, 1, "AMD EPYC 7003 (simulated)", AVX2),
    _cpu("zen4", "AuthenticAMD", 25, 17, "AMD EPYC 9004 (simulated)", ZEN4, PRESENT_ZENTORCH),
    _cpu("zen5", "AuthenticAMD", 26, 2, "AMD EPYC 9005 (simulated)", ZEN5, PRESENT_ZENTORCH),
    _cpu("x86-64", "GenuineIntel", 6, 58, "x86-64 without AVX2 (simulated)", frozenset({"sse4_1", "sse4_2", "avx"})),
    _cpu("x86-64-avx2", "GenuineIntel", 6, 94, "x86-64 with AVX2 (simulated)", AVX2),
    _cpu("x86-64-avx512", "GenuineIntel", 6, 106, "Intel Xeon with AVX-512 VNNI (simulated)", VNNI),
    _cpu("x86-64-amx", "GenuineIntel", 6, 143, "Intel Xeon with AMX (simulated)", AMX),
    _cpu("aarch64", "Arm implementer 0x41", 0, 0, "Arm Neoverse (simulated)", frozenset({"asimd", "asimddp", "i8mm", "bf16"})),
    *(_gpu(arch, "rocm", arch) for arch in ("gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1151", "gfx1201")),
    _gpu("xpu", "xpu", "xpu", Library("vllm_xpu_kernels", "present")),
    *(_gpu(f"cuda-{arch}", "cuda", arch) for arch in ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120")),
)
KNOWN: dict[str, Platform] = {entry.name: entry for entry in _PLATFORMS}


def simulated(text: str) -> Platform:
    """A platform by name, with library states after commas: "zen4", "zen4,zentorch=absent", "xpu,vllm_xpu_kernels=broken".

    UnknownNameError lists the known names, libraries or states.
    """
    name, *changes = (part.strip() for part in text.split(","))
    if name not in KNOWN:
        raise UnknownNameError("platform", name, KNOWN)
    found = KNOWN[name]
    for change in changes:
        library, _, state = change.partition("=")
        if library not in LIBRARIES:
            raise UnknownNameError("library", library, LIBRARIES)
        if state not in LIBRARY_STATES:
            raise UnknownNameError("library state", state, LIBRARY_STATES)
        hint = zentorch_hint(found.torch_version) if library == "zentorch" else ""
        detail = "" if state == "present" else "; ".join(filter(None, (f"{library} is {state} (simulated)", hint)))
        found = replace(found.with_library(Library(library, state, detail=detail)), name=text)
    return found
