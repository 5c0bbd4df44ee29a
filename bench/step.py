"""Shows where the time of one decoded token goes: our operators by name, and all that is between them.

    python bench/step.py demo-output/llama-1b-w4a16 --context 256

Steps with and without PyTorch's profiler take turns. A step without it says how long a step is, one with it how long each operator
is (its call through PyTorch included), so what the profiler costs does not count. The rest is guards, Python, allocations and the
loops that Inductor made.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where `bench` is, beside a qcompile that was installed elsewhere

from bench.model_run import cache_of
from qcompile.cli.folder import load_model

NAMESPACE = "qcompile::"
EACH = 6  # steps without the profiler, then as many with it


@dataclass(frozen=True, slots=True)
class Split:
    """Milliseconds of one step. step: whole, median; operators: (calls, milliseconds) of each by name, medians."""

    step: float
    operators: dict[str, tuple[int, float]]

    @property
    def rest(self) -> float:
        return self.step - sum(ms for _, ms in self.operators.values())


def split(step: Callable[[], Any], rounds: int) -> Split:
    """Time `step`, EACH times without and EACH times with the profiler in each round."""
    steps: list[float] = []
    operators: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for _ in range(rounds):
        for _ in range(EACH):
            begin = time.perf_counter()
            step()
            steps.append((time.perf_counter() - begin) * 1e3)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(EACH):
                step()
        for row in seen.key_averages():
            if row.key.startswith(NAMESPACE):
                operators[row.key].append((row.count // EACH, row.cpu_time_total / EACH / 1e3))
    found = {name: (rows[0][0], statistics.median(ms for _, ms in rows)) for name, rows in operators.items()}
    return Split(statistics.median(steps), found)


def decoding(folder: Path, context: int, rounds: int, options: dict[str, Any]) -> Split:
    """A step at `context` tokens of a static cache, which every step writes at its next place."""
    room = (2 * rounds + 1) * EACH
    model: Any = load_model(folder)
    forward: Callable[..., Any] = torch.compile(
        model.forward, dynamic=False, backend="qcompile", options={"release": True, **options}
    )
    ids = torch.randint(3, model.config.vocab_size, (1, 1), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cache = cache_of(model, context + room)
        for layer in cache.layers:
            layer.cumulative_length.fill_(context)

        def step() -> None:
            forward(input_ids=ids, past_key_values=cache, logits_to_keep=1)

        for _ in range(EACH):
            step()
        return split(step, rounds)


def shown(found: Split) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "calls", "ms", "share"):
        table.add_column(column, justify="right" if column else "left")
    for name, (calls, ms) in sorted(found.operators.items(), key=lambda item: -item[1][1]):
        table.add_row(name.removeprefix(NAMESPACE), str(calls), f"{ms:.2f}", f"{ms / found.step:.1%}")
    table.add_row("all between them", "", f"{found.rest:.2f}", f"{found.rest / found.step:.1%}")
    table.add_row("a step", "", f"{found.step:.2f}", "", style="bold")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a quantized checkpoint")
    parser.add_argument("--context", type=int, default=256, help="tokens before the decoded ones (default 256)")
    parser.add_argument("--rounds", type=int, default=8, help=f"of {EACH} steps without and {EACH} with the profiler (default 8)")
    parser.add_argument("--allow-a8", action="store_true", help="option allow_a8")
    given = parser.parse_args()
    options = {"allow_a8": True} if given.allow_a8 else {}
    Console().print(shown(decoding(given.folder, given.context, given.rounds, options)))


if __name__ == "__main__":
    main()
