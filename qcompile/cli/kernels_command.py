"""`qcompile kernels`: every kernel with "runs here", or the reasons why not."""

import argparse
import json

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qcompile.hardware import platform
from qcompile.targets.registry import table


def run(arguments: argparse.Namespace) -> int:
    where = platform(arguments.platform)
    found = table(where)
    if arguments.json:
        print(json.dumps({name: {"runs_here": not reasons, "reasons": list(reasons)} for name, reasons in found.items()}, indent=2))
        return 0
    here = f"on {where.name}" if where.simulated else "here"
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    shown.add_column("kernel", no_wrap=True)
    shown.add_column(f"runs {here}", overflow="fold")
    for name, reasons in found.items():
        first, *others = reasons or ("",)
        shown.add_row(
            f"[dim]{name}[/]" if reasons else f"[green]{name}[/]", f"[dim]{escape(first)}[/]" if reasons else "[green]yes[/]"
        )
        for sentence in others:
            shown.add_row("", f"[dim]{escape(sentence)}[/]")
    Console().print(shown)
    return 0
