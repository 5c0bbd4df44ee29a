"""What the demonstration prints with: one console, a progress bar over named steps, tables of latency and memory."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule

from qcompile.cli.bench_command import measured, table

CONSOLE = Console()
WAYS = ("qcompile", "eager", "inductor")


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
    """For each checkpoint a table: packed against the same model dense, each in its own process."""
    found: dict[str, list[dict[str, Any]]] = {}
    with steps(len(folders) * len(WAYS)) as step:
        for name, folder in folders.items():
            for way in WAYS:
                step(f"measuring {name}: {way}")
                options = {"release": True} if way == "qcompile" else {}
                result = measured({"folder": str(folder), "way": way, "options": options, **asked})
                found.setdefault(name, []).append(result)
    for name, results in found.items():
        CONSOLE.print()
        CONSOLE.print(f"[bold]{name}[/]")
        CONSOLE.print(table(results))
    CONSOLE.print(
        f"[dim]best of 5 runs, {next(iter(found.values()))[0]['threads']} threads; memory without Python and its libraries[/]"
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
