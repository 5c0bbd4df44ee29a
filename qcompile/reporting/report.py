"""The report: one row for every quantized linear that a compilation met, kept until `clear`, printed per structure or as JSON."""

import json
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from qcompile.reporting.rows import Rows, SiteReport, json_number, runs_without
from qcompile.reporting.table import show
from qcompile.reporting.text import plain


class Report(Rows):
    """What was decided, as `qcompile.report()` and `qcompile.explain` return it. `print(report)` shows one line per structure."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON types."""
        return {
            "summary": self.summary,
            "rewritten": len(self.served),
            "total": len(self.sites),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "sqnr_db": json_number(self.sqnr_db),
            "sites": [site.to_dict() for site in self.sites],
            "others": [row.to_dict() for row in self.others],
            "notes": list(self.notes),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The whole report as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def text(self, verbose: bool = False) -> str:
        """Plain text: one row per structure; with `verbose`, one row per layer."""
        return plain(self, verbose)

    def __str__(self) -> str:
        return self.text()

    def print(self, console: Console | None = None, verbose: bool = False, refused: bool = True) -> None:
        """Rich tables on `console` (default: standard output); with `refused`, also the kernels that were not taken, and why."""
        show(self, console or Console(), verbose, refused)


_lock = threading.RLock()  # a graph may be collected, and retire, while a row is recorded
# (layer, which call of it in one graph) -> graph -> what that graph does with it
_rows: dict[Hashable, dict[int, SiteReport]] = {}
_gone: set[int] = set()  # graphs that do not exist any more
_notes: dict[str, None] = {}
_looks: list[Callable[[Sequence[SiteReport]], Iterable[SiteReport]]] = []


def record(sites: Sequence[SiteReport], key: Hashable = None) -> None:
    """Add the decisions of one compilation; a layer that was compiled before (same identity, or same path) keeps one row.

    key: tells apart layers of two models that have the same path, where the sites carry no identity.
    """
    with _lock:
        _add(_rows, sites, key)


def _add(rows: dict[Hashable, dict[int, SiteReport]], sites: Iterable[SiteReport], key: Hashable) -> None:
    met: dict[Hashable, int] = {}
    for site in sites:
        layer = (key, site.module) if site.identity is None else (site.identity, site.is_linear)
        # A layer that is called twice in one graph has two rows.
        met[layer] = met.get(layer, 0) + 1
        graphs = rows.setdefault((*layer, met[layer]), {})
        for graph in _gone & graphs.keys():
            del graphs[graph]
        graphs.pop(site.graph, None)
        graphs[site.graph] = site


def gathered(sites: Iterable[SiteReport]) -> list[SiteReport]:
    """Rows of several graphs of one model as one row for each layer, without keeping them."""
    graphs: dict[int, list[SiteReport]] = {}
    for site in sites:
        graphs.setdefault(site.graph, []).append(site)
    rows: dict[Hashable, dict[int, SiteReport]] = {}
    with _lock:
        for given in graphs.values():
            _add(rows, given, None)
        return [_merged(row) for row in rows.values()]


def retire(graph: int) -> None:
    """This graph is not run any more: its decisions count only until others are made about the same layers."""
    with _lock:
        _gone.add(graph)


def note(text: str) -> bool:
    """Add a sentence about a whole model or its compilation; False if it is there already."""
    with _lock:
        known = text in _notes
        _notes[text] = None
        return not known


def _merged(rows: Mapping[int, SiteReport]) -> SiteReport:
    """One row for a layer of several graphs: the last decision, or the last that left it as it was; the note tells of others."""
    living = [row for graph, row in rows.items() if graph not in _gone] or list(rows.values())
    last = next((row for row in reversed(living) if row.kernel is None), living[-1])
    others: dict[str, int] = {row.kernel or runs_without(row): row.graph for row in living if row.kernel != last.kernel}
    also = [f"{kernel} in graph {graph}" for kernel, graph in others.items()]
    return replace(last, note="; ".join([last.note, *also] if last.note else also)) if also else last


def look_too(look: Callable[[Sequence[SiteReport]], Iterable[SiteReport]]) -> None:
    """Ask `look` for more rows whenever a report is made; it gets the ones that there are."""
    if look not in _looks:
        _looks.append(look)


def report() -> Report:
    """The decisions of all compilations so far (since the last `clear`)."""
    with _lock:
        rows = [_merged(row) for row in _rows.values()]
        notes = tuple(_notes)
    # What a front door says about a layer, and a graph about its weight, is about one layer.
    met = {row.module for row in rows if row.identity is not None}
    rows = [row for row in rows if row.identity is not None or row.module not in met or not row.is_linear]
    for look in _looks:
        rows += look(rows)
    return Report.of(rows, notes)


def clear() -> None:
    """Forget all decisions."""
    with _lock:
        _rows.clear()
        _gone.clear()
        _notes.clear()


def combined(reports: Iterable[Report]) -> Report:
    """Several reports as one."""
    given = tuple(reports)
    return Report.of(
        (row for each in given for row in (*each.sites, *each.others)), (text for each in given for text in each.notes)
    )
