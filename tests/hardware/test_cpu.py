"""The processor parsers on texts of real and made-up machines."""

from pathlib import Path

import pytest

from qcompile.hardware import cpu

AVX512 = "avx2 fma avx512f avx512dq avx512cd avx512bw avx512vl"


def x86(vendor: str, family: int, model: int, flags: str) -> str:
    processor = (
        f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: A Processor\nflags\t\t: fpu {flags}\n"
    )
    return f"processor\t: 0\n{processor}\nprocessor\t: 1\n{processor.replace('A Processor', 'Another')}\n"


ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"


def test_x86_fields_come_from_the_first_processor() -> None:
    found = cpu.parse_cpuinfo(x86("AuthenticAMD", 25, 17, AVX512))
    assert (found.vendor, found.family, found.model, found.brand) == ("AuthenticAMD", 25, 17, "A Processor")
    assert {"fpu", "avx512vl"} <= found.flags


def test_arm_fields() -> None:
    found = cpu.parse_cpuinfo(ARM)
    assert (found.vendor, found.model) == ("Arm implementer 0x41", 0xD4F)
    assert "i8mm" in found.flags


@pytest.mark.parametrize("text", ["", "\n\n", "nonsense", "flags", "cpu family : many\nmodel : ?\n", "\x00\xff:"])
def test_damaged_texts_give_an_empty_processor(text: str) -> None:
    found = cpu.parse_cpuinfo(text)
    assert (found.vendor, found.family, found.model, found.flags) == ("", 0, 0, frozenset())


@pytest.mark.parametrize(
    ("machine", "text", "name"),
    [
        ("x86_64", x86("AuthenticAMD", 25, 17, AVX512), "zen4"),
        ("x86_64", x86("AuthenticAMD", 26, 2, AVX512), "zen5"),
        ("x86_64", x86("AuthenticAMD", 25, 1, "avx2 fma"), "zen3"),
        ("x86_64", x86("AuthenticAMD", 23, 49, "avx2 fma"), "zen3"),
        ("x86_64", x86("AuthenticAMD", 21, 2, "avx"), "x86-64"),
        ("x86_64", x86("GenuineIntel", 6, 106, AVX512), "x86-64-avx512"),
        ("x86_64", x86("GenuineIntel", 6, 143, AVX512 + " amx_tile amx_int8"), "x86-64-amx"),
        ("x86_64", x86("GenuineIntel", 6, 94, "avx2 fma"), "x86-64-avx2"),
        ("x86_64", x86("GenuineIntel", 6, 94, "avx2"), "x86-64"),
        ("x86_64", x86("GenuineIntel", 6, 85, "avx2 fma avx512f"), "x86-64-avx2"),
        ("aarch64", ARM, "aarch64"),
        ("riscv64", "", "riscv64"),
        ("", "", "unknown"),
    ],
)
def test_processor_classes(machine: str, text: str, name: str) -> None:
    found = cpu.parse_cpuinfo(text)
    assert cpu.processor_class(machine, found, found.flags) == name


def test_amx_counts_only_with_the_permission_to_use_tiles() -> None:
    flags = frozenset({"avx512f", "amx_tile", "amx_int8", "amx_bf16"})
    assert cpu.usable_isa(flags, amx_granted=False) == {"avx512f"}
    assert cpu.usable_isa(flags, amx_granted=True) == flags


@pytest.mark.parametrize(
    ("text", "most"), [("max 100000", 10_000), ("200000 100000", 2), ("50000 100000", 1), ("x y", 10_000), ("", 10_000)]
)
def test_cores_are_cut_by_the_control_group(tmp_path: Path, text: str, most: int) -> None:
    free = cpu.usable_cores(tmp_path)
    (tmp_path / "cpu.max").write_text(text)
    assert 1 <= cpu.usable_cores(tmp_path) == min(free, most)


@pytest.mark.parametrize(("limit", "expected"), [("max", 2048 * 1024), ("1048576", 1048576), ("9999999999", 2048 * 1024)])
def test_memory_is_cut_by_the_control_group(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:    2048 kB\nMemFree:  1 kB\n")
    (tmp_path / "memory.max").write_text(limit)
    assert cpu.usable_memory(tmp_path, tmp_path) == expected


def test_unreadable_files_give_no_memory_figure(tmp_path: Path) -> None:
    assert cpu.usable_memory(tmp_path / "none", tmp_path / "none") == 0
