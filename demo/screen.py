"""What the demonstration prints with: one console, a progress bar over named steps, tables of latency and memory."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table

from qcompile.cli.bench_command import TIMES, measured
from qcompile.reporting.text import megabytes

CONSOLE = Console()
BASE = "dense, eager"


class Steps:
    """A progress bar that names the step it is at."""

    def __init__(self, bar: Progress, total: int) -> None:
        self.bar = bar
        self.task = bar.add_task("", total=total)

    def __call__(self, text: str) -> None:
        """The step before is done, this one begins."""
        done = self.bar.tasks[0].fields.get("begun", False)
        self.bar.update(self.task, advance=1 if done else 0, description=text, begun=True)


@contextmanager
def steps(total: int) -> Generator[Steps]:
    """A bar of `total` steps that disappears when all are done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=CONSOLE, transient=True) as bar:
        yield Steps(bar, total)


def fresh_start() -> None:
    """Forget earlier models and their report: Dynamo counts the compilations of all models of a class together, up to a limit."""
    torch.compiler.reset()


def heading(text: str) -> None:
    CONSOLE.print()
    CONSOLE.print(Rule(text, align="left"))


def latency_and_memory(folders: dict[str, Path], **asked: Any) -> None:
    """One table: each checkpoint packed, then the first one's model dense, eager and by Inductor; each in its own process."""
    found: dict[str, dict[str, Any]] = {}
    first = next(iter(folders.values()))
    runs = [(f"qcompile, {name}", folder, "qcompile") for name, folder in folders.items()]
    runs += [("dense, Inductor", first, "inductor"), (BASE, first, "eager")]
    with steps(len(runs)) as step:
        for name, folder, way in runs:
            step(f"measuring {name}")
            options = {"release": True} if way == "qcompile" else {}
            found[name] = measured({"folder": str(folder), "way": way, "options": options, **asked})
    times = [name for name in TIMES if name in found[BASE]]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for heading in (*(TIMES[name] for name in times), "memory", "peak", "first call"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in found.items():
        cells = [f"{row[time]:.1f}" + ("" if name == BASE else f" ({found[BASE][time] / row[time]:.1f}x)") for time in times]
        memory = [megabytes(row[part]) for part in ("resident_bytes", "peak_bytes")]
        table.add_row(f"[green]{name}[/]" if name.startswith("qcompile") else name, *cells, *memory, f"{row['first_s']:.1f} s")
    CONSOLE.print(table)
    threads = found[BASE]["threads"]
    CONSOLE.print(
        f"[dim]bfloat16, best of 5, {threads} threads; (x): speed against dense, eager; memory without Python and its libraries, "
        "peak from after loading; first call: with compilation[/]"
    )


def closing(output: Path) -> None:
    heading("Look further")
    first = next(iter(sorted(output.glob("*/config.json"))), None)
    folder = first.parent if first else output
    for command, what in (
        (f"qcompile explain {folder}", "the decisions again, layer by layer with --verbose"),
        (f"qcompile explain {folder} --platform gfx1100", "what another machine would do"),
        (f"qcompile run {folder.parent}/llama-small-w4a16 --prompt '1 2 3' --dump dump", "graphs after every pass and a drawing"),
        ("qcompile kernels", "every kernel, and why it does not run here"),
    ):
        CONSOLE.print(f"  [cyan]{command}[/]\n      [dim]{what}[/]", highlight=False)
