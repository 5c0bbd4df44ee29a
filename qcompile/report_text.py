"""The report for people: rows of equal layers joined, refused kernels explained once, as plain text and as a rich table."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qcompile.report import Report, SiteReport

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")
WIDE = 120  # columns from which the table also shows bytes


@dataclass(frozen=True, slots=True)
class Row:
    """Sites with the same structure and the same decision; `name` covers all their paths."""

    name: str
    sites: tuple[SiteReport, ...]

    @property
    def first(self) -> SiteReport:
        return self.sites[0]


def rows(report: Report, verbose: bool = False) -> list[Row]:
    """One row per structure: same path up to indices, same shape and scheme, same decision; with `verbose`, one per site."""
    if verbose:
        return [Row(site.module, (site,)) for site in report.sites]
    groups: dict[object, list[SiteReport]] = {}
    for site in report.sites:
        parent = _INDEX.sub("*", site.module).rpartition(".")[0]
        groups.setdefault((parent, _decision(site)), []).append(site)
    return [Row(joined_paths([site.module for site in sites]), tuple(sites)) for sites in groups.values()]


def _decision(site: SiteReport) -> tuple[object, ...]:
    shape = (site.format, site.bits, site.group, site.symmetric, site.act_order, site.codebook, site.n, site.k, site.activation)
    names = tuple((name, tuple(template(text) for text in texts)) for name, texts in site.reasons.items())
    return (*shape, site.kernel, names, site.fallback, template(site.declined), template(site.note))


def joined_paths(paths: Sequence[str]) -> str:
    """Paths that differ in indices and in their last part, as one: layers.0-21.mlp.{gate_proj,up_proj}."""
    distinct = list(dict.fromkeys(paths))
    columns = list(zip(*(_INDEX.findall(path) for path in distinct), strict=False))
    ranges = iter([number_ranges(int(index) for index in column) for column in columns])
    head = _INDEX.sub(lambda match: next(ranges, match.group()), distinct[0])
    tails = list(dict.fromkeys(path.rpartition(".")[2] for path in distinct))
    if len(tails) == 1 or all(tail.isdigit() for tail in tails):
        return head
    parent = head.rpartition(".")[0]
    return f"{parent}{'.' if parent else ''}{{{','.join(tails)}}}"


def number_ranges(numbers: Iterable[int]) -> str:
    """0,1,2,5 as "0-2,5"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in parts)


def template(text: str) -> str:
    """The sentence without its numbers."""
    return _NUMBER.sub("#", text)


def joined_sentences(texts: Iterable[str]) -> str:
    """Sentences that differ in numbers only, as one with ranges: "got K=100-300"."""
    distinct = list(dict.fromkeys(texts))
    columns = [sorted(set(column), key=float) for column in zip(*(_NUMBER.findall(text) for text in distinct), strict=True)]
    ranges = iter(column[0] if len(column) == 1 else f"{column[0]}-{column[-1]}" for column in columns)
    return _NUMBER.sub(lambda _: next(ranges), distinct[0])


def refusals(sites: Iterable[SiteReport]) -> list[tuple[str, str, int]]:
    """(kernel, sentence, number of layers) for kernels not taken; sentences that differ in numbers only are joined."""
    found: dict[tuple[str, str], list[str]] = {}
    for site in sites:
        for name, sentences in site.reasons.items():
            for sentence in dict.fromkeys(sentences):
                found.setdefault((name, template(sentence)), []).append(sentence)
    order = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in found))}
    listed = sorted(found.items(), key=lambda item: (order[item[0][0]], -len(item[1])))
    return [(name, joined_sentences(texts), len(texts)) for (name, _), texts in listed]


def megabytes(count: int) -> str:
    """Bytes for people: 512 B, 3.4 kB, 1.20 GB (powers of ten)."""
    if count < 1000:
        return f"{count} B"
    power = min(4, int(math.log10(count)) // 3)
    return f"{count / 1000**power:.3g} {' kMGT'[power]}B"


def decibels(value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "NaN"
    return "equal" if math.isinf(value) else f"{value:.0f} dB"


def worst_db(sites: Iterable[SiteReport]) -> float | None:
    return Report(tuple(sites)).sqnr_db


def runs_as(site: SiteReport) -> str:
    """The kernel's name, or what became of a site without one."""
    return site.kernel or ("dense" if site.fallback == "dense" else "left as it was")


def shape(site: SiteReport) -> str:
    return f"{site.n}x{site.k}" if site.n else ""


def footer(report: Report) -> str:
    """Bytes before and after and the worst SQNR, as far as they are known."""
    parts: list[str] = []
    if report.bytes_before:
        parts.append(f"weights {megabytes(report.bytes_before)} before, {megabytes(report.bytes_after)} after")
    dense = sum(site.n * site.k * 2 for site in report.sites)
    if dense and report.bytes_before:
        parts.append(f"dense bfloat16 would be {megabytes(dense)}")
    if report.sqnr_db is not None:
        parts.append(f"kernels against their reference: {decibels(report.sqnr_db)} or better")
    return "; ".join(parts)


def plain(report: Report, verbose: bool = False) -> str:
    """The report as plain text, one row per structure (with `verbose` per layer), reasons below."""
    lines = [report.summary]
    table: list[tuple[str, ...]] = []
    listed = rows(report, verbose)
    for row in listed:
        count = f"{len(row.sites)} x" if len(row.sites) > 1 else ""
        table.append((row.name, count, row.first.scheme, shape(row.first), runs_as(row.first), decibels(worst_db(row.sites))))
    widths = [max((len(cells[column]) for cells in table), default=0) for column in range(6)]
    for row, cells in zip(listed, table, strict=True):
        padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True) if width)
        lines.append(f"  {padded}".rstrip())
        lines += [f"      {text}" for text in (row.first.declined, row.first.note) if text]
        if row.first.kernel is None:
            lines += _reason_lines(row.sites, indent=6, count=False)
    if report.served:
        others = _reason_lines(report.served, indent=2, count=True)
        lines += ["", "kernels not taken", *others] if others else []
    if tail := footer(report):
        lines += ["", tail]
    return "\n".join(lines)


def _reason_lines(sites: Sequence[SiteReport], indent: int, count: bool) -> list[str]:
    found = refusals(sites)
    width = max((len(name) for name, _, _ in found), default=0)
    lines: list[str] = []
    before = ""
    for name, sentence, times in found:
        layers = f"  ({times} of {len(sites)})" if count and times != len(sites) else ""
        lines.append(f"{' ' * indent}{('' if name == before else name).ljust(width)}  {sentence}{layers}")
        before = name
    return lines


def show(report: Report, console: Console, verbose: bool = False) -> None:
    """The report as a rich table, unserved layers in red, and the reasons below it."""
    style = "bold green" if report.sites and not report.unserved else "bold yellow"
    console.print(Text(report.summary, style=style))
    if not report.sites:
        return
    wide = console.width >= WIDE
    table = _table("layer", "weight", "N x K", "kernel", "SQNR", *(("bytes",) if wide else ()), right=("N x K", "SQNR", "bytes"))
    for row in rows(report, verbose):
        site = row.first
        taken = f"[green]{site.kernel}[/]" if site.kernel else f"[red]{runs_as(site)}[/]"
        before, after = sum(s.bytes_before for s in row.sites), sum(s.bytes_after for s in row.sites)
        total = (f"{megabytes(before)} > {megabytes(after)}" if before or after else "",) if wide else ()
        table.add_row(escape(row.name), escape(site.scheme), shape(site), taken, decibels(worst_db(row.sites)), *total)
        if site.note:
            table.add_row(f"[dim]  {escape(site.note)}[/]")
    console.print(table)
    _show_unserved(report, console)
    _show_refusals("kernel not taken", report.served, console)
    if tail := footer(report):
        console.print(Text(tail, style="dim"))


def _table(*headings: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        if heading in right:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold", no_wrap=heading == "kernel")
    return table


def _show_unserved(report: Report, console: Console) -> None:
    for row in rows(Report(report.unserved)):
        console.print()
        console.print(Text.assemble((row.name, "red"), " has no kernel here" if row.first.reasons else " was not recognized"))
        if row.first.declined:
            console.print(f"  [dim]{escape(row.first.declined)}[/]")
        _show_refusals("", row.sites, console)


def _show_refusals(heading: str, sites: Sequence[SiteReport], console: Console) -> None:
    found = refusals(sites)
    if not found:
        return
    table = _table(heading, "why" if heading else "", "layers" if heading else "", right=("layers",))
    table.show_header = bool(heading)
    before = ""
    for name, sentence, times in found:
        count = str(times) if heading else ""
        table.add_row("" if name == before else f"  {escape(name)}", escape(sentence), count, style="dim")
        before = name
    if heading:
        console.print()
    console.print(table)
