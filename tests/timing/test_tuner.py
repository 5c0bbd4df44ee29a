"""Option tune: every shape and format is measured once, kept, and decides; the report tells the times."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.graphs import through, with_state
from support.packed_linears import packed_linear
from support.spellings import BF16, K, N

from qcompile.hardware import Platform
from qcompile.kernel import Kernel, Site
from qcompile.options import Options
from qcompile.passes import choose
from qcompile.pipeline import GraphSite
from qcompile.reporting.report import Report
from qcompile.targets.registry import kernels
from qcompile.timing import Times, trial, tuner
from qcompile.timing.kept import Kept
from qcompile.timing.tuner import Tuner, site_key

SITE = Site(n=64, k=64, bits=4, group=32)
ROWS = (1, 8, 128)
KERNELS = [kernels()["torch.int4pack"], kernels()["reference.quantized_linear"]]
X = torch.zeros(4, K, dtype=BF16)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The kernels of every trial; a kernel takes a millisecond for each letter of its name, int4pack cannot be timed."""
    made: list[tuple[str, ...]] = []

    class Told:
        def __init__(self, rows: Sequence[Kernel], site: Site, *, with_dense: bool) -> None:
            made.append(tuple(kernel.name for kernel in rows))
            self.names = [kernel.name for kernel in rows if kernel.name != "torch.int4pack"] + ["dense"]

        def times(self, sizes: Sequence[int], rounds: int) -> trial.Times:
            return {name: {m: len(name) * 1e-3 for m in sizes} for name in self.names}

    monkeypatch.setattr(tuner, "Trial", Told)
    monkeypatch.setattr(tuner, "quiet", lambda: True)
    return made


def test_a_shape_is_measured_once_and_kept(tmp_path: Path, trials: list[tuple[str, ...]]) -> None:
    kept = Kept(tmp_path, {"machine": "this"})
    for _ in range(2):
        each = Tuner(kept, ROWS)
        for site in (SITE, replace(SITE, zero_range=(1, 2), allow_a8=True)):
            found = each.times(site, KERNELS)
            assert found == {"reference.quantized_linear": dict.fromkeys(ROWS, 26 * 1e-3), "dense": dict.fromkeys(ROWS, 5 * 1e-3)}
    assert len(trials) == 1
    Tuner(kept, ROWS).times(replace(SITE, n=32), KERNELS)
    assert len(trials) == 2
    assert len(kept.load("tuned")) == 2


def test_another_machine_or_a_spoilt_file_is_measured_again(tmp_path: Path, trials: list[tuple[str, ...]]) -> None:
    Tuner(Kept(tmp_path, {"machine": "this"}), ROWS).times(SITE, KERNELS)
    Tuner(Kept(tmp_path, {"machine": "that"}), ROWS).times(SITE, KERNELS)
    assert len(trials) == 2
    kept = Kept(tmp_path, {"machine": "this"})
    for wrong in (3, {site_key(SITE): 4}, {site_key(SITE): {"dense": {"x": 1}}}):
        kept.save("tuned", wrong)
        assert Tuner(kept, ROWS).times(SITE, KERNELS)["dense"][1] == 0.005
    assert len(trials) == 5


@pytest.mark.parametrize("answers", [(False,), (True, False)], ids=["before", "meanwhile"])
def test_a_disturbed_measurement_is_neither_used_nor_kept(
    tmp_path: Path,
    trials: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answers: tuple[bool, ...],
) -> None:
    kept, said = Kept(tmp_path, {"machine": "this"}), iter(answers)
    monkeypatch.setattr(tuner, "quiet", lambda: next(said))
    each = Tuner(kept, ROWS)
    assert each.times(SITE, KERNELS) == {} and each.times(SITE, KERNELS) == {}
    assert "not tuned, because other processes use the processor (times must come out alike twice): n=64" in caplog.text
    assert len(trials) == len(answers) - 1 and kept.load("tuned") is None
    monkeypatch.setattr(tuner, "quiet", lambda: True)
    assert Tuner(kept, ROWS).times(SITE, KERNELS)["dense"][1] == 5 * 1e-3


def test_shaken_times_are_neither_used_nor_kept(
    tmp_path: Path, trials: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "steady", lambda one: {})
    kept = Kept(tmp_path, {"machine": "this"})
    assert Tuner(kept, ROWS).times(SITE, KERNELS) == {}
    assert len(trials) == 1 and kept.load("tuned") is None


def decided(monkeypatch: pytest.MonkeyPatch, times: Times, **options: Any) -> GraphSite:
    monkeypatch.setattr(choose, "times_for", lambda options, where: replace(times, where=where))
    (site,) = with_state(packed_linear(N, K), X, through("choose"), Options(**options)).sites
    return site


class Known:
    """A tuner that knows these milliseconds, whatever the layer."""

    def __init__(self, **known: tuple[float, float, float]) -> None:
        self.known = {name.replace("__", "."): dict(zip(ROWS, (v * 1e-3 for v in ms), strict=True)) for name, ms in known.items()}

    def times(self, site: Site, able: Sequence[Kernel]) -> dict[str, dict[int, float]]:
        return {name: self.known[name] for name in (*(kernel.name for kernel in able), "dense") if name in self.known}

    def kept_times(self, site: Site) -> dict[str, dict[int, float]]:
        return self.known


def two(platform_name: str = "x86-64-avx2") -> dict[str, Any]:
    """Options under which two kernels can run: the reference operator and torch's, if this torch has it."""
    return {"kernels": (), "disable": ("zentorch", "native", "xpu", "rdna3", "torch.int8pack")}


def usable(where: Platform | None = None) -> bool:
    from qcompile.hardware import platform  # noqa: PLC0415

    return not kernels()["torch.int4pack"].missing(where or platform())


@pytest.mark.skipif(not usable(), reason="this torch has no int4pack on this processor")
def test_measured_times_decide_and_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(kernels()["torch.int4pack"], name="fake.other")
    monkeypatch.setitem(kernels(), "fake.other", slow)
    known: Any = Known(torch__int4pack=(0.5, 1, 9), fake__other=(0.1, 0.5, 8), dense=(1, 1, 2))
    site = decided(monkeypatch, Times(None, {}, known), **two())  # type: ignore[arg-type]
    assert site.report.kernel == "fake.other"
    assert site.report.reasons["torch.int4pack"] == ("slower here: measured 0.5 ms against 0.1 ms of fake.other (M = 1)",)
    assert site.report.measured_ms["fake.other"] == pytest.approx({"1": 0.1, "8": 0.5, "128": 8})
    assert site.report.dense == "a dense bfloat16 weight would be faster at M = 128: measured 2 ms against 8 ms"
    text = Report((site.report,)).text()
    assert "measured 0.1 ms at M = 1, 0.5 ms at M = 8, 8 ms at M = 128" in text and site.report.dense in text
    assert json.loads(Report((site.report,)).to_json())["sites"][0]["measured_ms"]["torch.int4pack"]["8"] == pytest.approx(1)


@pytest.mark.skipif(not usable(), reason="this torch has no int4pack on this processor")
def test_factors_of_this_machine_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(kernels()["torch.int4pack"], name="fake.other")
    monkeypatch.setitem(kernels(), "fake.other", other)
    same = decided(monkeypatch, Times(None), **two())  # type: ignore[arg-type]
    assert same.report.kernel == "torch.int4pack"  # equal times: the one that stands first
    assert same.report.reasons["fake.other"][0].startswith("not faster by more than 10%, and listed later: predicted ")
    quick = decided(monkeypatch, Times(None, {"fake.other": ((1, 0.8),)}), **two())  # type: ignore[arg-type]
    assert quick.report.kernel == "fake.other"
    assert quick.report.predicted_ms["fake.other"] == pytest.approx(0.8 * quick.report.predicted_ms["torch.int4pack"])
    near = decided(monkeypatch, Times(None, {"fake.other": ((1, 0.95),)}), **two())  # type: ignore[arg-type]
    assert near.report.kernel == "torch.int4pack"


def test_no_word_of_dense_where_memory_does_not_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known: Any = Known(reference__quantized_linear=(1, 1, 9), dense=(1, 1, 2))
    options: dict[str, Any] = {"kernels": ("reference",)}
    there = decided(monkeypatch, Times(None, {}, known), **options)  # type: ignore[arg-type]
    assert "faster at M = 128" in there.report.dense
    monkeypatch.setattr(choose, "_ROOM", 0.0)
    assert decided(monkeypatch, Times(None, {}, known), **options).report.dense == ""  # type: ignore[arg-type]
