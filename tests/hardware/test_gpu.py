"""Accelerators from driver files and management libraries, without a GPU and without creating a context."""

import ctypes
import sys as system
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from qcompile.hardware import gpu


@pytest.mark.parametrize(
    ("version", "name"),
    [
        *((110000, "gfx1100"), (110001, "gfx1101"), (110002, "gfx1102"), (110501, "gfx1151"), (120001, "gfx1201")),
        *((90010, "gfx90a"), (90402, "gfx942"), (100300, "gfx1030"), (90006, "gfx906")),
    ],
)
def test_names_of_target_versions(version: int, name: str) -> None:
    assert gpu.gfx_name(version) == name


@pytest.mark.parametrize("text", ["", "gfx_target_version", "gfx_target_version 0\n", "gfx_target_version x\n", "simd_count 4\n"])
def test_processor_nodes_and_damaged_files_name_no_architecture(text: str) -> None:
    assert gpu.parse_kfd_properties(text) == ""


def nodes(root: Path, *versions: int) -> Path:
    for number, version in enumerate(versions):
        folder = root / gpu.KFD_NODES / str(number)
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"cpu_cores_count 0\ngfx_target_version {version}\nvendor_id 4098\n")
    return root


def test_kfd_nodes_in_device_order(tmp_path: Path) -> None:
    found = gpu.from_kfd(nodes(tmp_path, 0, 110000, 0, 110501, 0, 0, 0, 0, 0, 0, 90402))
    assert [device.arch for device in found] == ["gfx1100", "gfx1151", "gfx942"]
    assert {device.kind for device in found} == {"rocm"}


def test_no_driver_no_gpus(tmp_path: Path) -> None:
    assert gpu.from_kfd(tmp_path) == ()
    assert gpu.from_drm(tmp_path) == ()


def cards(root: Path, name: str, vendor: str, driver: str) -> None:
    device = root / "class/drm" / name / "device"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
    (device / "driver").symlink_to(root / "drivers" / driver)


def test_intel_gpus_are_cards_of_intels_drivers(tmp_path: Path) -> None:
    cards(tmp_path, "card0", "0x8086", "xe")
    cards(tmp_path, "card1", "0x8086", "i915")
    cards(tmp_path, "card2", "0x1002", "amdgpu")
    cards(tmp_path, "card0-DP-1", "0x8086", "xe")
    assert [device.source for device in gpu.from_drm(tmp_path)] == ["xe", "i915"]


class FakeSmi(ModuleType):
    """As much of AMD's management library as is used."""

    def __init__(self, versions: list[Any], fails: bool = False) -> None:
        super().__init__("amdsmi")
        self.versions, self.fails, self.closed = versions, fails, False

    def amdsmi_init(self) -> None:
        if self.fails:
            raise RuntimeError("no driver")

    def amdsmi_get_processor_handles(self) -> list[Any]:
        return self.versions

    def amdsmi_get_gpu_asic_info(self, handle: Any) -> dict[str, Any]:
        return {"target_graphics_version": handle}

    def amdsmi_shut_down(self) -> None:
        self.closed = True


def test_amdsmi_is_asked_where_the_topology_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeSmi(["gfx1100", "N/A", 12])
    monkeypatch.setitem(system.modules, "amdsmi", library)
    assert [(device.arch, device.source) for device in gpu.find(tmp_path) if device.kind == "rocm"] == [("gfx1100", "amdsmi")]
    assert library.closed


def test_a_management_library_that_does_not_start_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(system.modules, "amdsmi", FakeSmi(["gfx1100"], fails=True))
    assert gpu.from_amdsmi() == ()


def test_kfd_comes_before_amdsmi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(system.modules, "amdsmi", FakeSmi(["gfx942"]))
    found = [device for device in gpu.find(nodes(tmp_path, 110000)) if device.kind == "rocm"]
    assert [(device.arch, device.source) for device in found] == [("gfx1100", "kfd topology")]


def test_torch_is_only_asked_when_its_context_exists_already(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("this call creates a context")

    monkeypatch.setattr(torch.cuda, "get_device_properties", forbidden)
    monkeypatch.setattr(torch.cuda, "device_count", forbidden)
    assert gpu.from_torch() == ()
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize(("hip", "expected"), [("6.4", ("rocm", "gfx1100")), (None, ("cuda", "sm90"))])
def test_properties_of_an_initialised_torch(monkeypatch: pytest.MonkeyPatch, hip: str | None, expected: tuple[str, str]) -> None:
    properties = SimpleNamespace(gcnArchName="gfx1100:sramecc+:xnack-", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert [(device.kind, device.arch) for device in gpu.from_torch()] == [expected]


@pytest.mark.parametrize(
    ("hip", "cuda", "xpu", "build"),
    [("6.4", None, None, "rocm"), (None, "13.0", None, "cuda"), (None, None, "2025", "xpu"), (None, None, None, "cpu")],
)
def test_builds_of_torch(monkeypatch: pytest.MonkeyPatch, hip: str | None, cuda: str | None, xpu: str | None, build: str) -> None:
    for name, value in (("hip", hip), ("cuda", cuda), ("xpu", xpu)):
        monkeypatch.setattr(torch.version, name, value)
    assert gpu.torch_build() == build


def test_a_cpu_torch_cannot_use_a_gpu_that_is_there(tmp_path: Path) -> None:
    found = gpu.from_kfd(nodes(tmp_path, 110000))
    assert gpu.usable(found, "cpu") is None
    device = gpu.usable(found, "rocm")
    assert device is not None and device.arch == "gfx1100"


class FakeNvml:
    """As much of NVIDIA's management library as is used; the second device does not answer."""

    closed = False

    def nvmlInit_v2(self) -> int:  # noqa: N802 - the library's own names
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:  # noqa: N802
        major._obj.value, minor._obj.value = 8 + handle.value // 2, 0
        return 999 if handle.value == 2 else 0

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.closed = True
        return 0


def test_nvidia_gpus_by_their_management_library(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library)
    assert [(device.kind, device.arch) for device in gpu.from_nvml()] == [("cuda", "sm80"), ("cuda", "sm90")]
    assert library.closed


def test_no_nvidia_driver_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpu.from_nvml() == ()
