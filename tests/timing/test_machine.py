"""Limits and factors are believed only where a measurement was not disturbed; kept ones are checked before they are believed."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qcompile.hardware import platform
from qcompile.kernel import Kernel, Site
from qcompile.meaning import Operands
from qcompile.options import Options, user_cache_folder
from qcompile.targets.registry import kernels
from qcompile.timing import machine, times, trial
from qcompile.timing.kept import Kept
from qcompile.timing.machine import Machine, factors_of, rate
from qcompile.timing.times import Times, times_for
from qcompile.timing.trial import steady

HERE = replace(platform("zen4"), simulated=False, bandwidth=32e9, bf16_flops=460e9, int8_ops=915e9)
SITE = Site(n=64, k=64, bits=4, group=32)
FOUND = Machine(20e9, 300e9, 600e9, {"native.int4": ((1, 1.5), (8, 2.0))})


class Clocks:
    """A processor whose runs take `taken` seconds of which `share` is ours."""

    def __init__(self, taken: list[float], share: float) -> None:
        self.runs = iter([0.0, *taken])  # the first run is not timed
        self.share, self.wall_at = share, 0.0

    def call(self) -> float:
        self.wall_at += next(self.runs, 1.0)
        return 1.0

    def wall(self) -> float:
        return self.wall_at

    def processor(self) -> float:
        return self.wall_at * self.share * min(torch.get_num_threads(), platform().cores)


def test_the_best_run_counts() -> None:
    clocks = Clocks([0.010, 0.008, 0.02, 0.2], 0.9)
    assert rate(clocks.call, clocks.wall, clocks.processor) == pytest.approx(1 / 0.008)


def test_while_others_have_the_processor_nothing_is_known() -> None:
    clocks = Clocks([0.01] * 5, 0.6)
    assert rate(clocks.call, clocks.wall, clocks.processor) is None


def test_a_disturbed_machine_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "rate", lambda call: None)
    monkeypatch.setattr(machine, "missing_ops", lambda: None)
    monkeypatch.setattr(machine, "_PROBE_BYTES", 4096)
    assert machine.measure(HERE, []) is None


def told(*given: trial.Times) -> Callable[[], trial.Times]:
    return iter(given).__next__


def test_only_times_that_came_out_twice_are_believed() -> None:
    quiet, shaken = {"a": {1: 1.0, 8: 2.0}, "b": {1: 3.0}}, {"a": {1: 1.0, 8: 3.0}, "b": {1: 3.0}}
    assert steady(told(quiet, {"a": {1: 1.1, 8: 1.9}, "b": {1: 3.0}})) == {"a": {1: 1.0, 8: 1.9}, "b": {1: 3.0}}
    assert steady(told(shaken, quiet, quiet)) == quiet
    assert steady(told(quiet, shaken, quiet)) == quiet
    assert steady(told(quiet, shaken, shaken, shaken)) == {}
    assert steady(told(quiet, {"a": {1: 1.0, 8: 2.0}})) == {"a": {1: 1.0, 8: 2.0}}


def kernel(**changed: Any) -> Kernel:
    return replace(kernels()["reference.quantized_linear"], seconds=lambda site, m, where: 1e-3 * m, **changed)


def test_factors_beyond_reason_are_left_out() -> None:
    assert [f for pair in factors_of(lambda m: 1e-3 * m, {8: 16e-3, 1: 1.5e-3}) for f in pair] == pytest.approx([1, 1.5, 8, 2])
    assert factors_of(lambda m: 1e-3 * m, {1: 9e-3, 8: 8e-3}) == ()
    assert factors_of(lambda m: 1e-3 * m, {}) == ()


@pytest.mark.parametrize(
    "wrong",
    [None, 3, [], {}, {"bandwidth": "x"}, {**FOUND.to_dict(), "bandwidth": 0}, {**FOUND.to_dict(), "int8_ops": float("nan")},
     {**FOUND.to_dict(), "factors": {"a": []}}, {**FOUND.to_dict(), "factors": {"a": [[1]]}}, {**FOUND.to_dict(), "factors": {"a": [[1, -2]]}}],
)  # fmt: skip
def test_only_a_machine_is_read_as_one(wrong: Any) -> None:
    assert Machine.parse(wrong) is None
    assert Machine.parse(json.loads(json.dumps(FOUND.to_dict()))) == FOUND


def test_factors_correct_predictions_of_the_dtype_they_were_measured_with() -> None:
    given = Times(HERE, {"reference.quantized_linear": ((1, 1.5), (8, 2.0))})
    assert [given.predicted(kernel(), SITE, m) for m in (1, 7, 8, 512)] == pytest.approx([1.5e-3, 10.5e-3, 16e-3, 1.024])
    assert given.predicted(kernel(), replace(SITE, dtype=torch.float32), 8) == pytest.approx(8e-3)
    assert given.predicted(kernel(name="reference.other"), SITE, 8) == pytest.approx(8e-3)
    assert Times(HERE, {"dense": ((1, 3.0),)}).dense(SITE, 8) == pytest.approx(3 * given.dense(SITE, 8))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(times, "_machines", {})
    monkeypatch.setattr(times, "_tuners", {})
    return user_cache_folder()


def measuring(monkeypatch: pytest.MonkeyPatch, result: Callable[[], Machine | None]) -> list[int]:
    count: list[int] = []

    def measured(where: Any, rows: Any) -> Machine | None:
        count.append(1)
        return result()

    monkeypatch.setattr(times, "measure", measured)
    return count


def test_a_machine_is_measured_once_and_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = measuring(monkeypatch, lambda: FOUND)
    for _ in range(2):
        assert times_for(Options(), HERE).where.bandwidth == 20e9
    monkeypatch.setattr(times, "_machines", {})  # the next process
    found = times_for(Options(), HERE)
    assert (found.where.bf16_flops, found.where.int8_ops, found.factors) == (300e9, 600e9, FOUND.factors)
    assert len(count) == 1
    (path,) = home.iterdir()
    assert json.loads(path.read_text())["key"]["threads"] == str(torch.get_num_threads())
    times_for(Options(), replace(HERE, cores=HERE.cores + 1))
    assert len(count) == 2 and len(list(home.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": {}}'])
def test_a_file_that_cannot_be_believed_is_measured_again(home: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    count = measuring(monkeypatch, lambda: FOUND)
    times_for(Options(), HERE)
    (path,) = home.iterdir()
    path.write_text(content)
    monkeypatch.setattr(times, "_machines", {})
    assert times_for(Options(), HERE).where.bandwidth == 20e9
    assert len(count) == 2


def test_estimates_where_nothing_may_or_can_be_measured(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def never() -> Machine:
        raise OSError("no probes")

    count = measuring(monkeypatch, never)
    assert times_for(Options(measure=False), HERE).where is HERE
    assert times_for(Options(), platform("zen4")).where is platform("zen4")
    assert not count
    with caplog.at_level(logging.WARNING, "qcompile"):
        assert times_for(Options(), HERE).where is HERE
    assert "no probes" in caplog.text and "built-in estimates" in caplog.text


def test_a_disturbed_measurement_is_tried_again_by_the_next_process(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = measuring(monkeypatch, lambda: None)
    assert times_for(Options(), HERE).where is HERE and times_for(Options(), HERE).where is HERE
    assert len(count) == 1 and not home.exists()
    monkeypatch.setattr(times, "_machines", {})
    times_for(Options(), HERE)
    assert len(count) == 2


def test_a_folder_that_cannot_be_written_to_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file", {"a": "b"})
    kept.save("machine", 1)
    assert kept.load("machine") is None
    good = Kept(tmp_path / "deep" / "er", {"a": "b"})
    good.save("machine", 1)
    good.save("tuned", 2)
    assert (good.load("machine"), good.load("tuned")) == (1, 2)
    assert [path.suffix for path in (tmp_path / "deep" / "er").iterdir()] == [".json"]


def test_a_trial_times_what_runs_and_leaves_out_what_does_not() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("not today")

    def only_large(weight: Operands, site: Site) -> tuple[Tensor, ...]:
        return kernel().pack(weight, site) if site.n > 64 else broken()

    rows = [kernel(), kernel(name="a.pack", pack=broken), kernel(name="a.call", call=broken)]
    assert set(trial.Trial([*rows, kernel(name="a.small", pack=only_large)], replace(SITE, n=96)).times((1,), 1)) == {rows[0].name}
    site = replace(SITE, symmetric=False, zero_range=(3, 11), act_order=True, has_bias=True)
    found = trial.Trial(rows, site, with_dense=True).times((1, 3), 2)
    assert set(found) == {"reference.quantized_linear", "dense"}
    assert all(set(row) == {1, 3} and min(row.values()) > 0 for row in found.values())
    with torch.no_grad():
        y = trial.prepared(kernel(), site, trial.operands(site))(torch.ones(2, 64, dtype=torch.bfloat16))
    assert y.shape == (2, 64) and bool(y.isfinite().all())


def test_the_weight_is_cold_and_the_code_is_not() -> None:
    said: list[str] = []

    def saying(text: str) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            said.append(text)
            return x

        return run

    runs = {"a": trial.Timed(saying("a"), saying("small a")), "b": trial.Timed(saying("b"))}
    assert set(trial.least(runs, torch.ones(1), lambda: said.append("sweep"), 2)) == {"a", "b"}
    assert said == ["a", "small a", "b", *(2 * ["sweep", "small a", "a", "sweep", "b"])]


def test_factors_are_of_the_bandwidth_that_a_trial_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        """Memory twice as fast as a moment before."""

        bandwidth = 2e9

        def __init__(self, rows: list[Kernel], site: Site, *, with_dense: bool = False) -> None:
            self.rows = rows

        def times(self, rows: tuple[int, ...], rounds: int) -> trial.Times:
            return {row.name: dict.fromkeys(rows, 1.0) for row in self.rows}

    monkeypatch.setattr(machine, "rate", lambda call: 1e9)
    monkeypatch.setattr(machine, "missing_ops", lambda: None)
    monkeypatch.setattr(machine, "Trial", Told)
    reads = kernel(name="native.fake", missing=lambda _: (), refuses=lambda _: ())
    reads = replace(reads, seconds=lambda site, m, where: 1e9 / where.bandwidth)
    found = machine.measure(HERE, [reads])
    assert found is not None and found.bandwidth == 1e9
    assert found.factors["native.fake"] == tuple((m, 2.0) for m in machine.ROWS)


def test_a_trial_tells_how_fast_memory_was() -> None:
    attempt = trial.Trial([kernel()], SITE)
    assert attempt.bandwidth == 0
    attempt.times((1,), 1)
    assert attempt.bandwidth > 0
