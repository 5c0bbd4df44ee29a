"""Where each call has its own number of rows, two kernels on one packed weight share the calls."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from qcompile.hardware import platform
from qcompile.kernel import Kernel, Site
from qcompile.targets.registry import kernels
from qcompile.timing import Times
from qcompile.timing.candidates import Candidates, candidates
from qcompile.timing.order import Candidate, crossing

SITE = Site(n=4096, k=4096, bits=4, group=128, allow_a8=True)
Seconds = Callable[[int], float]


def candidate(seconds: Seconds, measured: Mapping[int, float] | None = None) -> Candidate:
    return Candidate("k", 0, 0, {m: seconds(m) for m in (1, 2, 4, 8, 16, 64, 128)}, measured or {}, "form")


def flat(m: int) -> float:
    return 1.0 + m * 0.1


@pytest.mark.parametrize(
    ("many", "rows"),
    [
        (lambda _: 0.5, 1),
        (lambda m: flat(m) * 0.95, math.inf),
        (lambda m: flat(m) * (1 if m < 16 else 0.5), 9),  # the ratio grows from 1 to 2 between 8 and 16
        (lambda m: flat(m) * (1 if m < 16 else 1 / 1.1 - 1e-9), 16),
        (lambda m: flat(m) * (0.5 if m in (2, 64, 128) else 1), 20),  # what is quicker for 2 rows, but not for 4, does not count
    ],
)
def test_crossing(many: Seconds, rows: float) -> None:
    assert crossing(candidate(flat), candidate(many)) == rows


def test_measured_times_count_for_the_crossing() -> None:
    few, many = candidate(flat, {1: 1.0, 8: 1.0, 128: 10.0}), candidate(lambda _: 0.1, {1: 1.0, 8: 1.0, 128: 5.0})
    assert crossing(few, many) == math.ceil(8 * 16 ** (math.log(1.1) / math.log(2)))
    assert crossing(few, candidate(lambda _: 0.1)) == 1  # times of one kind only


def of(rows: int | None, few: Seconds, many: Seconds, names: tuple[str, ...] = ()) -> Candidates:
    """native.int4 and native.int4_a8 with these times, and one that packs in its own way."""
    table = kernels()

    def timed(name: str, seconds: Seconds) -> Kernel:
        return replace(table[name], seconds=lambda _site, m, _where: seconds(m))

    able = [timed("zentorch.woq_linear", lambda m: 3 * flat(m)), timed("native.int4", few), timed("native.int4_a8", many)]
    return candidates(SITE, rows, {kernel.name: kernel for kernel in able}, Times(platform("zen4")), names)


def order(found: Candidates) -> list[str]:
    return [item.name.partition(".")[2] for item in found.order]


def test_each_kernel_gets_the_calls_it_is_quicker_for() -> None:
    found = of(None, flat, lambda m: flat(m) * (1.2 if m < 16 else 0.5))
    assert (order(found), found.few, found.few_rows) == (["int4_a8", "int4", "woq_linear"], "native.int4", 14)


@pytest.mark.parametrize(
    ("rows", "many", "first"),
    [
        (None, lambda m: flat(m) * 0.5, "int4_a8"),
        (None, lambda m: flat(m) * 0.97, "int4"),
        (1, lambda m: flat(m) * (1 if m < 16 else 0.5), "int4"),
        (64, lambda m: flat(m) * (1 if m < 16 else 0.5), "int4_a8"),
    ],
    ids=["always quicker", "never by more than noise", "one row", "many rows"],
)
def test_one_kernel_for_all_calls(rows: int | None, many: Seconds, first: str) -> None:
    found = of(rows, flat, many)
    assert (order(found)[0], found.few, found.few_rows) == (first, "", 0)


def test_option_kernels_rules() -> None:
    found = of(None, flat, lambda m: flat(m) * (1 if m < 16 else 0.5), ("native.int4", "native.int4_a8"))
    assert (order(found)[0], found.few) == ("int4", "")


def test_a_kernel_whose_time_cannot_be_told() -> None:
    def broken(_: int) -> float:
        raise ZeroDivisionError("no peak")

    found = of(None, flat, broken)
    assert order(found) == ["int4", "woq_linear"]
    assert found.unpredicted == {"native.int4_a8": ("its time could not be predicted: ZeroDivisionError: no peak",)}
