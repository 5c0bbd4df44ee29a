"""`qcompile bench FOLDER`: latency and memory of the packed model against dense runs, each in its own process."""

import argparse
import json
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from qcompile.cli.folder import FolderError
from qcompile.cli.measure import WAYS
from qcompile.cli.options import options_of
from qcompile.errors import UnknownNameError
from qcompile.reporting.text import megabytes
from qcompile.targets.registry import settings

TIMES = {"prefill_ms": "prompt ms", "decode_ms": "ms/token", "forward_ms": "forward ms"}
NAMES = {"qcompile": "qcompile, packed", "eager": "dense, eager", "inductor": "dense, Inductor"}


def run(arguments: argparse.Namespace) -> int:
    options = options_of(arguments)
    settings(options)
    ways = ["qcompile", *(way.strip() for way in arguments.against.split(",") if way.strip())]
    for way in ways:
        if way not in WAYS:
            raise UnknownNameError("way to run a model", way, WAYS)
    asked = {"folder": str(arguments.folder), "prompt_tokens": arguments.prompt_tokens, "tokens": arguments.tokens}
    found: list[dict[str, Any]] = []
    with Console(stderr=True).status("") as status:
        for way in ways:
            status.update(f"measuring {NAMES[way]}")
            found.append(measured({**asked, "way": way, "options": options if way == "qcompile" else {}}))
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        Console().print(table(found))
        Console().print(f"[dim]{found[0]['summary']}; {found[0]['threads']} threads; memory without Python and its libraries[/]")
    return 0


def measured(arguments: dict[str, Any]) -> dict[str, Any]:
    """The result of one measuring process; FolderError with its last line if it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "qcompile.cli.measure", json.dumps(arguments)], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FolderError(f"measuring {arguments['way']} failed: {last}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def table(found: list[dict[str, Any]]) -> Table:
    """One row for each way, with the packed run's speed-up over it."""
    shown = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    times = [name for name in TIMES if name in found[0]]
    shown.add_column("")
    for heading in (*(TIMES[name] for name in times), "memory", "peak", "first call"):
        shown.add_column(heading, justify="right", no_wrap=True)
    base = found[0]
    for row in found:
        cells = [
            f"{row[name]:.1f}" + ("" if row is base else f" ({row[name] / base[name]:.1f}x)" if base[name] else "")
            for name in times
        ]
        memory = [megabytes(row["resident_bytes"]), megabytes(row["peak_bytes"])]
        name = NAMES[row["way"]]
        shown.add_row(f"[green]{name}[/]" if row is base else name, *cells, *memory, f"{row['first_s']:.1f} s")
    return shown
