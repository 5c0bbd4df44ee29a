"""Accelerators, found without creating a GPU context: driver files, management libraries, or what torch already initialised."""

import ctypes
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from qcompile.hardware.model import Accelerator

KFD_NODES = Path("class/kfd/kfd/topology/nodes")
INTEL_PCI_VENDOR = "0x8086"
GFX = re.compile(r"gfx[0-9a-f]{3,5}")


def gfx_name(target_version: int) -> str:
    """The architecture of a `gfx_target_version` (Linux, amdkfd driver): 110000 -> gfx1100, 90010 -> gfx90a, 90402 -> gfx942."""
    major, minor, step = target_version // 10000, target_version // 100 % 100, target_version % 100
    return f"gfx{major}{minor:x}{step:x}"


def parse_kfd_properties(text: str) -> str:
    """The architecture named by one node's `properties` file; "" for a processor node or a text without a version."""
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key == "gfx_target_version" and value.strip().isdigit() and int(value) > 0:
            return gfx_name(int(value))
    return ""


def from_kfd(sys: Path) -> tuple[Accelerator, ...]:
    """AMD GPUs in the kernel driver's topology files, in node order."""
    found: list[Accelerator] = []
    for node in sorted((sys / KFD_NODES).glob("*/properties"), key=lambda path: (len(path.parent.name), path.parent.name)):
        try:
            arch = parse_kfd_properties(node.read_text(encoding="utf-8", errors="replace"))
        except OSError:  # nodes of GPUs that this container may not use are listed but cannot be read
            continue
        if arch:
            found.append(Accelerator("rocm", arch, "kfd topology"))
    return tuple(found)


def from_amdsmi() -> tuple[Accelerator, ...]:
    """AMD GPUs that AMD's management library reports; none if it is not installed or does not start."""
    try:
        smi: Any = import_module("amdsmi")
        smi.amdsmi_init()
    except Exception:  # its own error classes exist only when it imports
        return ()
    found: list[Accelerator] = []
    try:
        for handle in smi.amdsmi_get_processor_handles():
            match = GFX.search(str(smi.amdsmi_get_gpu_asic_info(handle).get("target_graphics_version", "")))
            if match:
                found.append(Accelerator("rocm", match.group(), "amdsmi"))
    except Exception:  # a partial answer is worth as much as none: the caller goes on without it
        found.clear()
    finally:
        smi.amdsmi_shut_down()
    return tuple(found)


def from_torch() -> tuple[Accelerator, ...]:
    """GPUs of a torch that has already made its context; asking then costs nothing, asking before would create one."""
    live: Any = torch  # the device modules are not annotated
    if live.cuda.is_initialized():
        devices = [live.cuda.get_device_properties(index) for index in range(live.cuda.device_count())]
        if torch.version.hip:
            return tuple(Accelerator("rocm", str(device.gcnArchName).split(":")[0], "torch") for device in devices)
        return tuple(Accelerator("cuda", f"sm{device.major}{device.minor}", "torch") for device in devices)
    if live.xpu.is_initialized():
        return tuple(Accelerator("xpu", "xpu", "torch") for _ in range(live.xpu.device_count()))
    return ()


def from_nvml() -> tuple[Accelerator, ...]:
    """NVIDIA GPUs by NVIDIA's management library (NVML API reference: initialization, device queries); none without a driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return ()
    except (OSError, AttributeError):
        return ()
    count, found = ctypes.c_uint(), list[Accelerator]()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
        for index in range(count.value):
            handle, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
            if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
                continue
            if nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) == 0:
                found.append(Accelerator("cuda", f"sm{major.value}{minor.value}", "nvml"))
    nvml.nvmlShutdown()
    return tuple(found)


def from_drm(sys: Path) -> tuple[Accelerator, ...]:
    """Intel GPUs among the kernel's graphics cards (`card*/device/vendor`), driven by xe or i915."""
    found: list[Accelerator] = []
    for card in sorted((sys / "class/drm").glob("card*")):
        if not re.fullmatch(r"card\d+", card.name):  # connectors are listed as card0-DP-1
            continue
        try:
            vendor = (card / "device/vendor").read_text(encoding="utf-8").strip()
            driver = (card / "device/driver").resolve().name
        except OSError:
            continue
        if vendor == INTEL_PCI_VENDOR and driver in ("xe", "i915"):
            found.append(Accelerator("xpu", "xpu", driver))
    return tuple(found)


def find(sys: Path) -> tuple[Accelerator, ...]:
    """Every accelerator, each kind from the first source that knows one."""
    live = from_torch()
    kinds = {device.kind for device in live}
    found = [*live]
    if "rocm" not in kinds:
        found += from_kfd(sys) or from_amdsmi()
    if "cuda" not in kinds:
        found += from_nvml()
    if "xpu" not in kinds:
        found += from_drm(sys)
    return tuple(found)


def torch_build() -> str:
    """Which devices this torch was built for: "rocm", "cuda", "xpu" or "cpu"."""
    if torch.version.hip:
        return "rocm"
    if torch.version.cuda:
        return "cuda"
    return "xpu" if torch.version.xpu else "cpu"


def usable(found: Iterable[Accelerator], build: str) -> Accelerator | None:
    """The first accelerator that a torch of this build can use."""
    return next((device for device in found if device.kind == build), None)
