"""A few hundred cases of each generator with fixed seeds (`make fuzz` goes on from there), and the process that runs them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from fuzz import graphs, kernels
from fuzz.__main__ import Run
from fuzz.bounds import Bounds, compare
from fuzz.near_misses import near_miss
from fuzz.trial import capture

pytestmark = pytest.mark.usefixtures("fresh_compiler", "one_thread")

GRAPH_SEEDS, KERNEL_SEEDS, AT_A_TIME = 48, 8, 8


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("first", range(0, GRAPH_SEEDS, AT_A_TIME))
def test_random_graphs_give_the_numbers_of_eager(first: int) -> None:
    outcomes = [graphs.case(seed) for seed in range(first, first + AT_A_TIME)]
    assert [outcome.detail for outcome in outcomes if outcome.kind not in ("right", "declined")] == []
    assert sum(outcome.cases for outcome in outcomes) == graphs.ROUNDS * AT_A_TIME
    assert any(outcome.kind == "right" for outcome in outcomes)


@pytest.mark.parametrize("first", range(0, KERNEL_SEEDS, AT_A_TIME))
def test_random_products_are_what_the_formula_says(first: int) -> None:
    outcomes = [kernels.case(seed) for seed in range(first, first + AT_A_TIME)]
    assert [outcome.detail for outcome in outcomes if outcome.kind != "right"] == []
    assert sum(outcome.cases for outcome in outcomes) >= kernels.XS * AT_A_TIME


def test_a_seed_is_always_the_same_case() -> None:
    assert graphs.random_program(Random(11)).describe() == graphs.random_program(Random(11)).describe()
    assert near_miss(Random(12))[3] == near_miss(Random(12))[3]
    first, second = kernels.random_problem(Random(13)), kernels.random_problem(Random(13))
    assert first.describe() == second.describe() and torch.equal(first.dense, second.dense)


def bounds_of_a_product(dtype: torch.dtype) -> tuple[Bounds, torch.Tensor]:
    torch.manual_seed(0)
    x, w, s = torch.randn(4, 32, dtype=dtype), torch.randint(-8, 8, (16, 32)).to(dtype), torch.rand(16).to(dtype) + 0.1
    return Bounds(capture(lambda x, w, s: ((x @ w.t()) * s,), [x, w, s]), [w, s]), x


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_the_bound_notices_other_numbers(dtype: torch.dtype, relative: float) -> None:
    bounds, x = bounds_of_a_product(dtype)
    (pair,) = bounds.run(x)
    name = str
    assert compare([pair], [pair[0].clone()], name) == ""
    assert compare([pair], [pair[0] * (1 + 2.0**-24)], name) == ""
    other = pair[0].clone()
    other[2, 3] += pair[0].abs().max() * relative
    assert compare([pair], [other], name).startswith("0[2, 3] is ")
    assert "instead of" in compare([pair], [pair[0].double()], name)


def test_the_bound_wants_nan_and_infinity_where_eager_has_them() -> None:
    bounds, x = bounds_of_a_product(torch.float32)
    x[1, 5], x[2, 6] = float("nan"), float("inf")
    (pair,) = bounds.run(x)
    assert not bool(pair[0][1:3].isfinite().any())
    assert compare([pair], [pair[0].clone()], str) == ""
    assert compare([pair], [pair[0].nan_to_num()], str).startswith("0[1, 0] is nan")
    spread = pair[0].clone()
    spread[3] = float("nan")
    assert compare([pair], [spread], str).startswith("0[3, 0] is ")


def test_one_code_more_is_outside_the_bound_of_one_hot_rows() -> None:
    """The identity shows a weight element by element, so that even in bfloat16 a wrong code cannot hide among others."""
    torch.manual_seed(0)
    w, s = torch.randint(-8, 8, (16, 32)).bfloat16(), torch.full((16, 1), 0.01).bfloat16()
    gm = capture(lambda x, w, s: (x @ (w * s).t(),), [torch.eye(32).bfloat16(), w, s])
    (pair,) = Bounds(gm, [w, s]).run(torch.eye(32).bfloat16())
    other = w.clone()
    other[3, 7] += 1
    assert compare([pair], [(other * s).t().contiguous()], str).startswith("0[7, 3] is ")


DIES = """
import os
from fuzz import Outcome
def case(seed, folder):
    assert folder.is_dir() and not list(folder.iterdir())
    (folder / "left behind").touch()
    print("not a line of ours", flush=True)
    if seed == 12:
        os._exit(9)
    if seed == 13:
        raise ValueError("thirteen")
    return Outcome("wrong" if seed == 11 else "right", f"detail {seed}", 10)
"""


def test_a_case_that_ends_the_process_is_named_and_the_next_ones_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    run = Run("dies", first=10, minutes=5, most=6)
    assert not run.go()
    assert dict(run.counts) == {"right": 30, "wrong": 10, "crash": 2}
    said = capfd.readouterr().out
    assert "--- wrong: python -m fuzz dies --seed 11 --count 1\ndetail 11\n" in said
    assert "--seed 12 --count 1\nthe process ended with status 9\n" in said and "ValueError: thirteen" in said
    assert "dies done: 42 cases, 6 seeds" in said and os.linesep in said
    assert Run("dies", first=20, minutes=5, most=2).go()


def test_children_side_by_side_share_the_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dies_too.py").write_text(DIES)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    run = Run("dies_too", first=10, minutes=5, most=7, jobs=3)
    assert not run.go()
    assert dict(run.counts) == {"right": 40, "wrong": 10, "crash": 2}
    said = capfd.readouterr().out
    assert [line for line in sorted(said.splitlines()) if line.startswith("---")] == [
        "--- crash: python -m fuzz dies_too --seed 12 --count 1",
        "--- crash: python -m fuzz dies_too --seed 13 --count 1",
        "--- wrong: python -m fuzz dies_too --seed 11 --count 1",
    ]
    assert "dies_too done: 52 cases, 7 seeds" in said
