"""The report: one row for every quantized linear that a compilation met, kept until `clear`, printed per structure or as JSON."""

import json
import math
import re
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rich.console import Console

# Formats of rows that are about no quantized linear.
OTHER_FORMATS = ("attention", "dense")
# JSON has no infinity. 320 dB is where float64 stops telling two results apart, so it stands for "equal".
EQUAL_DB = 320.0
# The kinds of meaning.ActivationQuant in the words of the report.
ACTIVATION_WORDS = {"": "", "none": "", "token": "a8 token", "token_asymmetric": "a8 asym token", "tensor": "a8 static"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """What was decided about one quantized linear y = act(x) @ W.T, W [n, k].

    module         path of the layer in the model ("model.layers.0.mlp.up_proj")
    format         the storage format's name; bits, group, symmetric, act_order, codebook: as in meaning.QuantizedWeight
    activation     how the layer's input is rounded before the product, "" for not at all
    kernel         the kernel that runs it, None if it is unserved
    reasons        kernel name -> sentences, for every kernel that was not taken (also the ones that are only slower)
    recognized_by  the reader's name, or "lattice"; "" if the site was not recognized
    fallback       what an unserved site became: "dense" (dequantized once) or "packed" (left as it was)
    declined       why the site was not recognized at all, "" otherwise
    note           one more sentence for the reader of the report ("one call with k_proj and v_proj"), or ""
    bytes_before   bytes of the constants that the layer read before; bytes_after: that it reads now
    sqnr_db        the kernel against the canonical operation on a probe, None if not measured, inf if equal
    predicted_ms   kernel name -> predicted milliseconds for one row of x, of those that could run
    measured_ms    kernel name -> rows of x ("1", "8", "128") -> milliseconds measured by option tune
    dense          a sentence if a dense weight would be quicker for many rows and memory would allow it, or ""
    graph          number of the compilation that decided it
    identity       what stays the same when this layer is compiled again (None: its path); not part of the JSON form
    """

    module: str
    format: str = ""
    bits: int = 0
    group: int = 0
    symmetric: bool = True
    act_order: bool = False
    codebook: str = ""
    n: int = 0
    k: int = 0
    activation: str = ""
    kernel: str | None = None
    reasons: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {})
    recognized_by: str = ""
    fallback: str = "packed"
    declined: str = ""
    note: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    sqnr_db: float | None = None
    predicted_ms: Mapping[str, float] = field(default_factory=lambda: {})
    measured_ms: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: {})
    dense: str = ""
    graph: int = 0
    identity: Hashable = None

    @property
    def scheme(self) -> str:
        """Bits, group and zero points in one short text: "int4 g128 asym"."""
        if not self.bits:
            return "?"
        kind = "fp" if self.codebook else "int"
        group = "channel" if self.group == self.k else f"g{self.group}"
        extras = (" asym" if not self.symmetric else "") + (" act-order" if self.act_order else "")
        rounded = ACTIVATION_WORDS.get(re.split("[/@]", self.activation)[0], self.activation)
        return f"{kind}{self.bits} {group}{extras}{', ' if rounded else ''}{rounded}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; infinite SQNR becomes EQUAL_DB, NaN becomes None."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "identity"}
        values["reasons"] = {name: list(sentences) for name, sentences in self.reasons.items()}
        values["predicted_ms"] = dict(self.predicted_ms)
        values["measured_ms"] = {name: dict(times) for name, times in self.measured_ms.items()}
        values["sqnr_db"] = _json_number(self.sqnr_db)
        return values


def _json_number(value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    return max(-EQUAL_DB, min(EQUAL_DB, value))


@dataclass(frozen=True, slots=True)
class Report:
    """Decisions about quantized linears, in the order in which they were met. `print(report)` shows them per structure.

    others: rows about what is no quantized linear (format "attention" or "dense"); no count or sum includes them.
    notes: sentences about whole models and their compilation.
    """

    sites: tuple[SiteReport, ...] = ()
    others: tuple[SiteReport, ...] = ()
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(rows: Iterable[SiteReport], notes: Iterable[str] = ()) -> "Report":
        """A report of these rows, each where it belongs."""
        given = tuple(rows)
        others = tuple(row for row in given if row.format in OTHER_FORMATS)
        return Report(tuple(row for row in given if row.format not in OTHER_FORMATS), others, tuple(dict.fromkeys(notes)))

    @property
    def served(self) -> tuple[SiteReport, ...]:
        return tuple(site for site in self.sites if site.kernel is not None)

    @property
    def unserved(self) -> tuple[SiteReport, ...]:
        return tuple(site for site in self.sites if site.kernel is None)

    @property
    def summary(self) -> str:
        """One line: how many quantized linears were rewritten."""
        if not self.sites:
            return "qcompile: no quantized linear was compiled yet"
        of = len(self.sites)
        return f"qcompile: {len(self.served)} of {of} quantized linear{'s' if of != 1 else ''} rewritten"

    @property
    def bytes_before(self) -> int:
        return sum(site.bytes_before for site in self.sites)

    @property
    def bytes_after(self) -> int:
        return sum(site.bytes_after for site in self.sites)

    @property
    def sqnr_db(self) -> float | None:
        """The worst measured SQNR of all sites, NaN if one is NaN, None if none was measured."""
        values = [site.sqnr_db for site in self.sites if site.sqnr_db is not None]
        if any(math.isnan(value) for value in values):
            return math.nan
        return min(values, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON types."""
        return {
            "summary": self.summary,
            "rewritten": len(self.served),
            "total": len(self.sites),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "sqnr_db": _json_number(self.sqnr_db),
            "sites": [site.to_dict() for site in self.sites],
            "others": [row.to_dict() for row in self.others],
            "notes": list(self.notes),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The whole report as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def text(self, verbose: bool = False) -> str:
        """Plain text: one row per structure; with `verbose`, one row per layer."""
        from qcompile.report_text import plain  # noqa: PLC0415 - the renderer needs this module's types

        return plain(self, verbose)

    def __str__(self) -> str:
        return self.text()

    def print(self, console: Console | None = None, verbose: bool = False, refused: bool = True) -> None:
        """Rich tables on `console` (default: standard output); with `refused`, also the kernels that were not taken, and why."""
        from qcompile.report_table import show  # noqa: PLC0415 - the renderer needs this module's types

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
        layer = (key, site.module) if site.identity is None else (site.identity, site.format in OTHER_FORMATS)
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


def runs_without(site: SiteReport) -> str:
    """What became of a site without a kernel."""
    return "dense" if site.fallback == "dense" else "left as it was"


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
    rows = [row for row in rows if row.identity is not None or row.module not in met or row.format in OTHER_FORMATS]
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


def emit_trace(given: Report) -> None:
    """Write the report as a structured artifact under TORCH_TRACE, where tlparse shows it; free when no trace is asked for."""
    from torch._logging._internal import trace_structured_artifact  # noqa: PLC0415 - so that reports need no torch

    trace_structured_artifact("qcompile_report", "json", given.to_json)
