"""The report for people: rows of equal layers joined, refused kernels explained once, as plain text."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qcompile.reporting.rows import Rows, SiteReport, runs_without

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Row:
    """Sites with the same structure and the same decision; `name` covers all their paths."""

    name: str
    sites: tuple[SiteReport, ...]

    @property
    def first(self) -> SiteReport:
        return self.sites[0]


def rows(report: Rows, verbose: bool = False) -> list[Row]:
    """One row per structure: same path up to indices, same shape and scheme, same decision; with `verbose`, one per site."""
    if verbose:
        return [Row(site.module, (site,)) for site in report.sites]
    groups: dict[object, list[SiteReport]] = {}
    for site in report.sites:
        parent = _INDEX.sub("*", site.module).rpartition(".")[0]
        groups.setdefault((parent, _decision(site)), []).append(site)
    return [Row(joined_paths([site.module for site in sites]), tuple(sites)) for sites in groups.values()]


def _decision(site: SiteReport) -> tuple[object, ...]:
    shape = (site.format, site.scheme, site.codebook, site.n, site.k, site.activation)
    names = tuple((name, tuple(template(text) for text in texts)) for name, texts in site.reasons.items())
    return (*shape, site.kernel, names, site.fallback, template(site.declined), template(site.note), template(site.dense))


def joined_paths(paths: Sequence[str]) -> str:
    """Paths that differ in indices and in their last part, as one: layers.0-21.mlp.{gate,up}_proj."""
    distinct = list(dict.fromkeys(paths))
    columns = list(zip(*(_INDEX.findall(path) for path in distinct), strict=False))
    ranges = iter([number_ranges(int(index) for index in column) for column in columns])
    head = _INDEX.sub(lambda match: next(ranges, match.group()), distinct[0])
    tails = list(dict.fromkeys(path.rpartition(".")[2] for path in distinct))
    if len(tails) == 1 or all(tail.isdigit() for tail in tails):
        return head
    parent = head.rpartition(".")[0]
    return f"{parent}{'.' if parent else ''}{_alternatives(tails)}"


def _alternatives(names: Sequence[str]) -> str:
    """Names as one, with what they end in given once: {k,v}_proj."""
    parts = [name.split("_") for name in names]
    same = 0
    while same + 1 < min(map(len, parts)) and len({part[-1 - same] for part in parts}) == 1:
        same += 1
    ending = "".join(f"_{word}" for word in parts[0][len(parts[0]) - same :])
    return f"{{{','.join(name.removesuffix(ending) for name in names)}}}{ending}"


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
    return Rows(tuple(sites)).sqnr_db


def runs_as(site: SiteReport) -> str:
    """The kernel's name, or what became of a site without one."""
    return site.kernel or runs_without(site)


def shape(site: SiteReport) -> str:
    return f"{site.n}x{site.k}" if site.n else ""


def footer(report: Rows) -> str:
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


def plain(report: Rows, verbose: bool = False) -> str:
    """The report as plain text, one row per structure (with `verbose` per layer), reasons below."""
    lines = [report.summary]
    table: list[tuple[str, ...]] = []
    listed = rows(report, verbose)
    for row in listed:
        count = f"{len(row.sites)} x" if len(row.sites) > 1 else ""
        table.append((row.name, count, row.first.scheme, shape(row.first), runs_as(row.first), decibels(worst_db(row.sites))))
    widths = [max((len(cells[column]) for cells in table), default=0) for column in range(6)]
    for place, (row, cells) in enumerate(zip(listed, table, strict=True)):
        padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True) if width)
        lines.append(f"  {padded}".rstrip())
        if row.first.note:
            lines.append(f"      {row.first.note}")
        lines += [f"      {line}" for line in time_lines(row.first, verbose)]
        following = listed[place + 1].first if place + 1 < len(listed) else None
        # Rows in a row that have the same reasons get them once.
        if row.first.kernel is None and (following is None or why(following) != why(row.first)):
            lines += [f"      {row.first.declined}"] if row.first.declined else []
            lines += _reason_lines([site for site in report.unserved if why(site) == why(row.first)], indent=6, count=False)
    if report.served:
        others = _reason_lines(report.served, indent=2, count=True)
        lines += ["", "kernels not taken", *others] if others else []
    lines += other_lines(report, verbose)
    lines += ["", *report.notes] if report.notes else []
    if tail := footer(report):
        lines += ["", tail]
    return "\n".join(lines)


def other_lines(report: Rows, verbose: bool = False) -> list[str]:
    """What else was rewritten or left: rows about attention and dense products, one for each decision."""
    lines: list[str] = []
    for row in rows(Rows(report.others), verbose):
        count = f"  {len(row.sites)} x" if len(row.sites) > 1 else ""
        lines.append(f"  {row.name}{count}  {row.first.format}  {row.first.kernel or 'left as it was'}")
        lines += [f"      {row.first.note}"] if row.first.note else []
        lines += _reason_lines(row.sites, indent=6, count=False) if row.first.kernel is None else []
    return ["", "besides quantized linears", *lines] if lines else []


def time_lines(site: SiteReport, verbose: bool = False) -> list[str]:
    """The chosen kernel's measured times (with `verbose` the predicted one, too), and where a dense weight would be quicker."""
    parts: list[str] = []
    if site.kernel is not None and verbose and site.kernel in site.predicted_ms:
        parts.append(f"predicted {site.predicted_ms[site.kernel]:.3g} ms at M = 1")
    if site.kernel is not None and site.kernel in site.measured_ms:
        times = site.measured_ms[site.kernel].items()
        parts.append("measured " + ", ".join(f"{value:.3g} ms at M = {rows}" for rows, value in times))
    return [line for line in ("; ".join(parts), site.dense) if line]


def why(site: SiteReport) -> tuple[object, ...]:
    """The reasons for a site's decision without their numbers, to tell which sites share them."""
    return (site.kernel, template(site.declined), *((name, *map(template, texts)) for name, texts in site.reasons.items()))


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
