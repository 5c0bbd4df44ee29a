"""The report as rich tables: layers under the block they belong to, then layers without a kernel and why, then refused kernels."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcompile.reporting.rows import Rows, SiteReport
from qcompile.reporting.text import (
    Row,
    decibels,
    footer,
    joined_paths,
    megabytes,
    other_lines,
    refusals,
    rows,
    runs_as,
    shape,
    time_lines,
    why,
    worst_db,
)

WIDE = 120  # columns from which the table also shows bytes
NARROW = 100  # below this the weight's scheme stands under the layer's name


def show(report: Rows, console: Console, verbose: bool = False, refused: bool = True) -> None:
    """Print the report on `console`, layers without a kernel in red; `refused`: also the kernels not taken where there is one."""
    style = "bold green" if report.sites and not report.unserved else "bold yellow"
    console.print(Text(report.summary, style=style))
    if not report.sites:
        _show_notes(report, console)
        return
    console.print(_layers(rows(report, verbose), console.width))
    notes = {site.note: None for site in report.sites if site.note}
    for note in notes:
        count = sum(1 for site in report.sites if site.note == note)
        console.print(Text(f"  {note} ({count} layers)", style="dim"))
    for row in rows(report, verbose):
        for line in time_lines(row.first, verbose):
            console.print(Text(f"  {row.name}: {line}", style="dim"))
    for sites in _same_reasons(report.unserved):
        name = joined_paths([site.module for site in sites]) if len(rows(Rows(sites))) == 1 else f"{len(sites)} layers"
        state = "without a kernel here" if sites[0].reasons else "not recognized"
        console.print()
        console.print(Text.assemble((name, "red"), f": {state}"))
        if sites[0].declined:
            console.print(Text(f"  {sites[0].declined}", style="dim"))
        _show_refusals("", sites, console, complete=True)
    if refused:
        _show_refusals("kernel not taken", report.served, console, complete=verbose)
    for line in other_lines(report, verbose):
        console.print(Text(line, style="dim" if line.startswith("      ") else ""))
    _show_notes(report, console)
    if tail := footer(report):
        console.print()
        console.print(Text(tail, style="dim"))


def _show_notes(report: Rows, console: Console) -> None:
    for text in report.notes:
        console.print()
        console.print(Text(text, style="yellow"))


def _layers(listed: Sequence[Row], width: int) -> Table:
    narrow, wide = width < NARROW, width >= WIDE
    headings = ("layer", "", *(() if narrow else ("weight",)), "N x K", "kernel", "SQNR", *(("bytes",) if wide else ()))
    table = _table(*headings, right=("", "N x K", "SQNR", "bytes"))
    blocks = [_block(row.name) for row in listed]
    before = ""
    for row, block in zip(listed, blocks, strict=True):
        shared = bool(block) and blocks.count(block) > 1
        if shared and block != before:
            table.add_row(escape(block))
        before = block if shared else ""
        name = f"  {row.name.removeprefix(block)[1:]}" if shared else row.name
        site = row.first
        taken = f"[green]{site.kernel}[/]" if site.kernel else f"[red]{runs_as(site)}[/]"
        count = f"{len(row.sites)} x" if len(row.sites) > 1 else ""
        first, last = sum(s.bytes_before for s in row.sites), sum(s.bytes_after for s in row.sites)
        total = (f"{megabytes(first)} > {megabytes(last)}" if first or last else "",) if wide else ()
        indent = " " * (len(name) - len(name.lstrip()) + 2)
        label = f"{escape(name)}\n{indent}[dim]{escape(site.scheme)}[/]" if narrow else escape(name)
        scheme = () if narrow else (escape(site.scheme),)
        table.add_row(label, count, *scheme, shape(site), taken, decibels(worst_db(row.sites)), *total)
    return table


def _block(name: str) -> str:
    """The path down to the last part that is an index or a range of them: "model.layers.0-21"."""
    parts = name.partition("{")[0].split(".")
    last = max((place for place, part in enumerate(parts) if part[:1].isdigit()), default=-1)
    return ".".join(parts[: last + 1]) if last + 1 < len(parts) else ""


def _same_reasons(sites: Iterable[SiteReport]) -> list[tuple[SiteReport, ...]]:
    groups: dict[object, list[SiteReport]] = {}
    for site in sites:
        groups.setdefault(why(site), []).append(site)
    return [tuple(group) for group in groups.values()]


def _table(*headings: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        if heading in right:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold", no_wrap=heading in {"kernel", "weight", "kernel not taken"})
    return table


def _show_refusals(heading: str, sites: Sequence[SiteReport], console: Console, complete: bool) -> None:
    """Kernels not taken; unless `complete`, only the first reason of each and how many more there are."""
    found = refusals(sites)
    if not found:
        return
    reasons: dict[str, list[tuple[str, int]]] = {}
    for name, sentence, times in found:
        reasons.setdefault(name, []).append((sentence, times))
    shown = [(name, *entry) for name, entries in reasons.items() for entry in (entries if complete else _shortened(entries))]
    counted = any(times != len(sites) for _, _, times in shown)
    table = _table(heading or "kernel not taken", "why", *(("layers",) if counted else ()), right=("layers",))
    table.show_header = bool(heading)
    before = ""
    for name, sentence, times in shown:
        count = (str(times) if times != len(sites) else "all",) if counted else ()
        table.add_row("" if name == before else f"  {escape(name)}", escape(sentence), *count, style="dim")
        before = name
    if heading:
        console.print()
    console.print(table)


def _shortened(entries: list[tuple[str, int]]) -> list[tuple[str, int]]:
    (sentence, times), more = entries[0], len(entries) - 1
    return [(f"{sentence} (and {more} more reason{'s' if more > 1 else ''})" if more else sentence, times)]
