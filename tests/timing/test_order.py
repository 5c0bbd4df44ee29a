"""The order of kernels follows times, but not noise; the sentences for the others compare like with like."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from qcompile.timing.order import Candidate, ordered, why_not


def candidate(
    name: str, number: int, ms: tuple[float, float, float], measured: tuple[float, float, float] | None = None, place: int = 0
) -> Candidate:
    def times(values: tuple[float, float, float]) -> Mapping[int, float]:
        return dict(zip((1, 8, 128), (value * 1e-3 for value in values), strict=True))

    return Candidate(name, number, place, times(ms), times(measured) if measured else {})


def names(*candidates: Candidate) -> list[str]:
    return [each.name for each in ordered(candidates)]


def test_the_quickest_over_all_rows_comes_first() -> None:
    assert names(candidate("a", 0, (1, 1, 9)), candidate("b", 1, (0.8, 0.8, 8)), candidate("c", 2, (0.1, 5, 50))) == ["b", "a", "c"]


@pytest.mark.parametrize("noise", [0.95, 1.0, 1.05])
def test_nearly_equal_kernels_keep_the_order_of_the_table(noise: float) -> None:
    first, second = candidate("first", 0, (1, 2, 3)), candidate("second", 1, (noise, 2 * noise, 3 * noise))
    assert names(first, second) == names(second, first) == ["first", "second"]


def test_more_than_the_margin_counts() -> None:
    assert names(candidate("first", 0, (1, 2, 3)), candidate("second", 1, (0.9, 1.8, 2.7))) == ["second", "first"]


def test_near_is_near_to_the_quickest() -> None:
    """Not to the next one: otherwise a row of small steps would put the slowest first."""
    steps = [candidate(f"k{number}", number, (time, time, time)) for number, time in enumerate((1.25, 1.16, 1.08, 1.0))]
    assert names(*steps) == ["k2", "k3", "k1", "k0"]


def test_option_kernels_comes_before_time() -> None:
    wanted = candidate("wanted", 1, (9, 9, 9), place=0)
    assert names(candidate("quick", 0, (1, 1, 1), place=1), wanted) == ["wanted", "quick"]
    assert why_not(candidate("quick", 0, (1, 1, 1), place=1), wanted) == (
        "comes after wanted in option kernels (predicted 1 ms against 9 ms of wanted (M = 1))"
    )


def test_measured_times_count_where_all_have_them() -> None:
    a, b = candidate("a", 0, (1, 1, 1), (5, 5, 5)), candidate("b", 1, (2, 2, 2), (3, 3, 3))
    assert names(a, b) == ["b", "a"]
    assert why_not(a, b) == "slower here: measured 5 ms against 3 ms of b (M = 1)"
    assert names(a, candidate("b", 1, (2, 2, 2))) == ["a", "b"]


def test_reasons() -> None:
    chosen = candidate("native.int4", 1, (0.2, 1, 10))
    assert why_not(candidate("x", 2, (0.41, 1.1, 11)), chosen) == (
        "slower here: predicted 0.41 ms against 0.2 ms of native.int4 (M = 1)"
    )
    assert why_not(candidate("x", 2, (0.3, 4, 8)), chosen) == (
        "slower here: predicted 4 ms against 1 ms of native.int4 (M = 8); faster at M = 128"
    )
    assert why_not(candidate("x", 2, (0.2, 0.98, 9.8)), chosen) == (
        "not faster by more than 10%, and listed later: predicted 0.2 ms against 0.2 ms of native.int4 (M = 1)"
    )


def of_one_form(rows: int | None) -> list[Candidate]:
    """Two kernels on one packed weight: equal for few rows, one of them quicker for many; and one that packs in its own way."""
    times = {1: 1e-3, 8: 1e-3, 128: 10e-3, 512: 40e-3}
    quicker = {**times, 128: 9e-3, 512: 20e-3}
    return [
        Candidate("plain", 0, 0, times, form="int4", rows=rows),
        Candidate("rounding", 1, 0, quicker, form="int4", rows=rows),
        Candidate("other", 2, 0, {rows: 0.99 * time for rows, time in quicker.items()}, rows=rows),
    ]


@pytest.mark.parametrize(
    ("rows", "best"), [(None, "plain"), (1, "plain"), (512, "rounding")], ids=["any number", "few rows", "many rows"]
)
def test_kernels_on_one_packed_weight_are_chosen_by_the_rows_of_the_graph(rows: int | None, best: str) -> None:
    assert names(*of_one_form(rows))[0] == best


def test_the_reason_names_the_rows_of_the_graph() -> None:
    plain, rounding, _ = of_one_form(1)
    assert why_not(rounding, plain) == (
        "not faster by more than 10%, and listed later, for the one row of this graph: predicted 1 ms against 1 ms of plain"
    )
    plain, rounding, _ = of_one_form(512)
    assert why_not(plain, rounding) == "slower for the 512 rows of this graph: predicted 40 ms against 20 ms of rounding"


def test_tuned_times_count_for_the_nearest_number_of_rows() -> None:
    few = {1: 1e-3, 8: 1e-3, 128: 10e-3}
    plain = Candidate("plain", 0, 0, {**few, 512: 1.0}, few, "int4", 512)
    rounding = Candidate("rounding", 1, 0, {**few, 512: 1.0}, {**few, 128: 5e-3, 1: 1.5e-3}, "int4", 512)
    assert names(plain, rounding)[0] == "rounding"


def test_a_quicker_kernel_does_not_widen_the_weight() -> None:
    packed = candidate("packed", 1, (1, 2, 9))
    wide = replace(candidate("wide", 0, (0.5, 1, 2)), bits=8)
    assert names(wide, packed) == ["packed", "wide"]
    assert why_not(wide, packed) == "would keep codes of 4 bits in 8 (predicted 0.5 ms against 1 ms of packed (M = 1))"
    assert names(wide, replace(packed, place=1)) == ["wide", "packed"]  # the user may ask for it
