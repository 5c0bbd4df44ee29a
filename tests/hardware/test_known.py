"""Simulated platforms, and this machine from made-up folders: names, library states, text and JSON."""

import json
from pathlib import Path

import pytest
import torch

from qcompile.errors import UnknownNameError
from qcompile.hardware import KNOWN, capability_flags, describe, detect, platform, summary
from qcompile.hardware.cost import predicted


def test_a_name_gives_that_platform() -> None:
    for name, expected in KNOWN.items():
        found = platform(name)
        assert found is expected
        assert (found.name, found.simulated) == (name, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("zen9", ["unknown platform", "Did you mean", "zen4", "gfx1100", "xpu"]),
        ("zen4,numpy=absent", ["unknown library", "zentorch"]),
        ("zen4,zentorch=gone", ["unknown library state", "absent", "broken", "present"]),
        ("zen4,zentorch", ["unknown library state"]),
        ("", ["unknown platform"]),
    ],
)
def test_unknown_names_list_the_known_ones(text: str, words: list[str]) -> None:
    with pytest.raises(UnknownNameError) as error:
        platform(text)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("state", ["absent", "broken", "ineligible"])
def test_library_states_can_be_simulated(state: str) -> None:
    found = platform(f"zen4, zentorch={state}").library("zentorch")
    assert found.state == state
    assert "pip install" in found.detail
    assert platform("zen4").library("zentorch").present


@pytest.mark.parametrize(
    ("name", "device"), [("zen4", "cpu"), ("gfx1100", "cuda"), ("cuda-sm90", "cuda"), ("xpu", "xpu"), ("aarch64", "cpu")]
)
def test_the_device_of_a_platform(name: str, device: str) -> None:
    assert platform(name).device == device


def test_this_machine_is_looked_at_once_and_not_simulated() -> None:
    assert platform() is platform()
    assert not platform().simulated
    assert platform().cores >= 1


def test_a_made_up_machine(tmp_path: Path) -> None:
    flags = "avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni"
    (tmp_path / "cpuinfo").write_text(f"vendor_id : GenuineIntel\ncpu family : 6\nmodel : 106\nflags : {flags}\n")
    (tmp_path / "meminfo").write_text("MemTotal: 1024 kB\n")
    node = tmp_path / "sys/class/kfd/kfd/topology/nodes/1"
    node.mkdir(parents=True)
    (node / "properties").write_text("gfx_target_version 110000\n")
    found = detect(tmp_path, tmp_path / "sys", "x86_64")
    assert found.name == "x86-64-avx512"
    assert found.gpu("rocm") == ("gfx1100",)
    assert found.memory == 1 << 20
    assert not found.library("zentorch").present


def test_a_machine_without_cpuinfo_is_described_by_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert detect(tmp_path / "none", tmp_path / "none", "AMD64").has_avx512
    assert capability_flags("DEFAULT") == frozenset()


def test_a_rocm_torch_with_its_card_is_that_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "class/kfd/kfd/topology/nodes/1"
    node.mkdir(parents=True)
    (node / "properties").write_text("gfx_target_version 110000\n")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert detect(tmp_path / "none", tmp_path, "x86_64").name == "gfx1100"


@pytest.mark.parametrize("name", [None, "zen4", "gfx1100", "zen4,zentorch=broken"])
def test_descriptions_are_json_and_text(name: str | None) -> None:
    where = platform(name)
    described = json.loads(json.dumps(describe(where)))
    assert described["name"] == where.name
    assert set(described["libraries"]) == {"zentorch", "vllm", "vllm_xpu_kernels"}
    text = summary(where)
    assert where.name in text.splitlines()[0]
    assert where.library("zentorch").state in text


def test_predicted_time_is_the_larger_limit_times_the_factor_of_the_rows() -> None:
    where = platform("zen4")
    factors = ((1, 2.0), (16, 3.0))
    assert predicted(where, 1e9, 1.0, 1, factors) == pytest.approx(2e9 / where.bandwidth)
    assert predicted(where, 1.0, 1e12, 16, factors) == pytest.approx(3e12 / where.bf16_flops)
    assert predicted(where, 1.0, 1e12, 999, factors, int8=True) == pytest.approx(3e12 / where.int8_ops)
    assert predicted(where, 1e9, 1.0, 0, factors) == pytest.approx(2e9 / where.bandwidth)
