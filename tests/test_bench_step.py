"""bench/step.py: operators are counted by name, what is between them is the rest."""

import time

import torch
from rich.console import Console

from bench.step import Split, shown, split
from qcompile.operators import fake_quantize


def test_a_step_is_split() -> None:
    x = torch.randn(64, 64)

    def step() -> None:
        for _ in range(3):
            fake_quantize(x, None, None, "token/127/-127")
        time.sleep(0.005)

    found = split(step, 2)
    (name,) = found.operators
    calls, ms = found.operators[name]
    assert (name, calls) == ("qcompile::fake_quantize", 3)
    assert ms > 0 and found.step >= 5 and abs(found.rest + ms - found.step) < 1e-9


def test_the_table() -> None:
    console = Console(record=True, width=80)
    console.print(shown(Split(10.0, {"qcompile::native_int4_linear": (88, 8.0)})))
    text = console.export_text().split("\n")
    assert text[1].split() == ["native_int4_linear", "88", "8.00", "80.0%"]
    assert text[2].split() == ["all", "between", "them", "2.00", "20.0%"]
    assert text[3].split() == ["a", "step", "10.00"]
