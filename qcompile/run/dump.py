"""Option dump: one folder per graph with its text before and after every pass, the decisions, and a drawing."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qcompile.graph.text import to_text
from qcompile.pipeline import GraphSite, State
from qcompile.reporting.drawing import draw
from qcompile.reporting.report import Report
from qcompile.reporting.rows import SiteReport
from qcompile.reporting.text import joined_paths
from qcompile.run.regions.cut import Plan

log = logging.getLogger(__name__)

_OURS = (
    "[0-9][0-9]_before_*.txt",
    "[0-9][0-9]_after_*.txt",
    "decisions.txt",
    "decisions.json",
    "packing.txt",
    "graph.dot",
    "graph.svg",
    "regions.txt",
)
_begun: set[Path] = set()  # folders that this process has written into


class Dump:
    """Writes into folder/graph_NNN; with no folder every method does nothing. A file that cannot be written is only logged.

    Of a graph that was compiled in regions each piece of code has its own folder, graph_NNN_region_M; folder graph_NNN then has the
    decisions about all layers, and in regions.txt which piece runs when.

    What an earlier process dumped into the folder is removed first.

    NN_before_PASS.txt, NN_after_PASS.txt   the graph as text
    decisions.txt, decisions.json           the report of this graph
    graph.dot, graph.svg                    the sites, coloured by kernel, and what is between them
    packing.txt                             every packed constant: where from, how many bytes, by which recipe
    """

    def __init__(self, folder: Path | None, number: int, region: int | None = None) -> None:
        name = f"graph_{number:03d}" + ("" if region is None else f"_region_{region}")
        self.folder = None if folder is None else Path(folder) / name

    def observe(self, number: int, name: str, when: str, state: State) -> None:
        if self.folder is not None:
            self._write(f"{number:02d}_{when}_{name}.txt", to_text(state.graph))

    def decisions(self, rows: Sequence[SiteReport], state: State) -> None:
        if self.folder is None:
            return
        given = self._report(rows)
        self._write("packing.txt", "\n".join(_packing(state)) + "\n")
        try:
            sites = {(site.node if site.kernel else site.original).name: _drawn(site) for site in state.sites}
            constants = {node.name for node in (*state.constants, *state.folded)}
            draw(state.gm, sites, self.folder / "graph", constants, given.summary)
        except Exception:  # a drawing is never worth a failure
            log.warning("the drawing of %s could not be made", self.folder, exc_info=True)

    def regions(self, rows: Sequence[SiteReport], plan: Plan) -> None:
        """The decisions about all layers of a graph that was compiled in regions, and the order of the regions."""
        if self.folder is None:
            return
        self._report(rows)
        lines = [
            f"{place:3d}  region {part.module}  makes {', '.join(map(str, part.outputs))}" for place, part in enumerate(plan.parts)
        ]
        self._write("regions.txt", "\n".join([str(plan), *lines, ""]))

    def _report(self, rows: Sequence[SiteReport]) -> Report:
        given = Report.of(rows)
        self._write("decisions.txt", given.text(verbose=True))
        self._write("decisions.json", given.to_json())
        return given

    def _write(self, name: str, text: str) -> None:
        assert self.folder is not None
        try:
            _forget_earlier(self.folder.parent)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)
        except OSError as error:
            log.warning("%s could not be written: %s", self.folder / name, error)


def _forget_earlier(folder: Path) -> None:
    """Before this process's first file: take away what an earlier one dumped there, and nothing else."""
    if folder.absolute() in _begun:
        return
    _begun.add(folder.absolute())
    for graph in [*folder.glob("graph_[0-9][0-9][0-9]"), *folder.glob("graph_[0-9][0-9][0-9]_region_*")]:
        for pattern in _OURS:
            for path in graph.glob(pattern):
                path.unlink()
        if not any(graph.iterdir()):
            graph.rmdir()


def _drawn(site: GraphSite) -> SiteReport:
    """The row that stands for one call in the drawing; a call for several layers names them all."""
    return replace(site.report, module=joined_paths([row.module for row in site.rows()])) if site.parts else site.report


def _packing(state: State) -> list[str]:
    lines = []
    for node, folded in state.folded.items():
        tensor = folded.tensor
        lines.append(
            f"{node.name}: {folded.module} result {folded.index} of {folded.kernel}: "
            f"{json.dumps(list(tensor.shape))} {tensor.dtype} {tensor.nbytes} bytes from {', '.join(folded.recipe.paths)}"
        )
    return lines
