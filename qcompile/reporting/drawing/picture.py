"""What a drawing shows: the sites of a graph, and everything between two sites joined into one box."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import networkx as nx
import torch
from torch import fx

from qcompile.reporting.report import Report
from qcompile.reporting.rows import SiteReport
from qcompile.reporting.text import decibels, rows, runs_as, shape

UNSERVED = "no kernel"
MOST_SITES = 48  # a picture with more is not read; then each structure is drawn once
SHOWN_OPERATIONS = 4
# Operations that only move or convert data say least about a place in the model, so they are named last.
MOVES = frozenset((
    "view", "reshape", "_unsafe_view", "expand", "slice", "select", "transpose", "t", "permute", "unsqueeze", "squeeze",
    "clone", "cat", "split", "getitem", "split_with_sizes", "alias", "contiguous", "_to_copy", "to",
    "convert_element_type", "unbind", "stack", "flatten", "unflatten", "movedim",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Box:
    """One box: `kind` is "input", "output", "operations", or a kernel's name (UNSERVED for none); `tip` shows on hovering."""

    kind: str
    lines: tuple[str, ...]
    tip: str = ""


@dataclass(slots=True)
class Picture:
    """Boxes by id, edges between ids (an acyclic graph), the kernels in order of first use with their number of sites."""

    title: str
    boxes: dict[str, Box] = field(default_factory=lambda: {})
    edges: list[tuple[str, str]] = field(default_factory=lambda: [])
    legend: dict[str, int] = field(default_factory=lambda: {})


def picture(graph: fx.Graph, sites: Mapping[str, SiteReport], constants: Collection[str] = (), title: str = "") -> Picture:
    """The picture of `graph`; sites: node name -> report row; constants: names of placeholders that hold weights."""
    known = {node.name: sites[node.name] for node in graph.nodes if node.name in sites}
    drawn = _drawn(known)
    seen = Picture(title or Report(tuple(known.values())).summary)
    seen.legend = dict(Counter(site.kernel or UNSERVED for site in known.values()))
    live = _live_nodes(graph, frozenset(constants))
    boxes = _assign(live, drawn)
    members: dict[str, list[fx.Node]] = {}
    for node in live:
        members.setdefault(boxes[node], []).append(node)
    edges = dict.fromkeys(
        (boxes[source], boxes[node])
        for node in live
        for source in node.all_input_nodes
        if source in boxes and boxes[source] != boxes[node]
    )
    near = _near(edges, drawn)
    seen.edges = _without_shortcuts([edge for edge in edges if edge[0] in near and edge[1] in near], _outputs(graph))
    for name, nodes in members.items():
        if name in near:
            seen.boxes[name] = _site_box(drawn[name]) if name in drawn else _plain_box(nodes, known)
    return seen


def _drawn(sites: Mapping[str, SiteReport]) -> dict[str, SiteReport]:
    """All sites, or the first one of each structure if there are too many."""
    if len(sites) <= MOST_SITES:
        return dict(sites)
    parents: set[str] = set()
    for row in rows(Report(tuple(sites.values()))):
        parents.add(row.first.module.rpartition(".")[0])
    return {name: site for name, site in sites.items() if site.module.rpartition(".")[0] in parents}


def _live_nodes(graph: fx.Graph, constants: frozenset[str]) -> list[fx.Node]:
    """The nodes that depend on the model's inputs and are no sizes; weights and what is computed from them alone are left out."""
    live: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat | int):
            continue
        given = node.op == "placeholder" and node.name not in constants
        if given or node.op == "output" or any(source in live for source in node.all_input_nodes):
            live[node] = None
    return list(live)


def _assign(live: Iterable[fx.Node], drawn: Collection[str]) -> dict[fx.Node, str]:
    """Box id of every node: sites, inputs and the output are their own; others share one with neighbours behind the same sites.

    Nodes with equal sets of sites before them may be joined without making a cycle: a path from one to the other through a site
    would put that site before only one of them.
    """
    before: dict[fx.Node, int] = {}
    groups: nx.Graph[fx.Node] = nx.Graph()
    own: dict[fx.Node, str] = {}
    bits = {name: 1 << place for place, name in enumerate(drawn)}
    for node in live:
        before[node] = 0
        for source in node.all_input_nodes:
            if source in before:
                before[node] |= before[source] | bits.get(source.name, 0)
        if node.name in drawn or node.op in {"placeholder", "output"}:
            own[node] = node.name
            continue
        groups.add_node(node)
        for source in node.all_input_nodes:
            if source in groups and before[source] == before[node]:
                groups.add_edge(source, node)
    for component in nx.connected_components(groups):
        first = min(node.name for node in component)
        own.update(dict.fromkeys(component, f"between_{first}"))
    return own


def _outputs(graph: fx.Graph) -> set[str]:
    return {node.name for node in graph.find_nodes(op="output")}


def _without_shortcuts(edges: list[tuple[str, str]], outputs: Collection[str]) -> list[tuple[str, str]]:
    """Edges to the output only from boxes that reach it no other way: caches that a model returns would cross the whole picture."""
    reached: nx.DiGraph[str] = nx.DiGraph(edges)
    leading = {name for output in outputs if output in reached for name in nx.ancestors(reached, output)}
    lasting = {name for name in leading if any(target in leading for target in reached.successors(name))}
    return [(source, target) for source, target in edges if target not in outputs or source not in lasting]


def _near(edges: Iterable[tuple[str, str]], drawn: Collection[str]) -> set[str]:
    """Sites, the boxes next to them, and the boxes next to those."""
    near = set(drawn)
    listed = list(edges)
    for _ in range(2):
        near |= {name for edge in listed if edge[0] in near or edge[1] in near for name in edge}
    return near


def _site_box(site: SiteReport) -> Box:
    measured = decibels(site.sqnr_db)
    size = "  ".join(part for part in (shape(site), measured and f"SQNR {measured}") if part)
    lines = (short_path(site.module), site.scheme, size, runs_as(site))
    refused = [f"{name}: {sentence}" for name, sentences in site.reasons.items() for sentence in sentences]
    tip = "\n".join(part for part in (site.module, site.format, site.declined, site.note, *refused) if part)
    return Box(site.kernel or UNSERVED, tuple(line for line in lines if line), tip)


def short_path(path: str, parts: int = 3) -> str:
    """The last parts of a dotted path."""
    return ".".join(path.split(".")[-parts:])


def _plain_box(nodes: list[fx.Node], sites: Mapping[str, SiteReport]) -> Box:
    first = nodes[0]
    if first.op == "placeholder":
        value = first.meta.get("val")
        size = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" if isinstance(value, torch.Tensor) else ""
        return Box("input", tuple(text for text in (first.name, size) if text))
    if first.op == "output":
        return Box("output", ("output",))
    folded = sum(1 for node in nodes if node.name in sites)
    counts = Counter(operation(node) for node in nodes if node.name not in sites)
    ordered = sorted(counts.items(), key=lambda item: (item[0] in MOVES or item[0].startswith("_assert"), -item[1]))
    named = [name if times == 1 else f"{name} x{times}" for name, times in ordered]
    shown, hidden = named[:SHOWN_OPERATIONS], sum(times for _, times in ordered[SHOWN_OPERATIONS:])
    more = [f"{hidden} more"] if hidden else []
    inside = [f"with {folded} quantized linears like the drawn ones"] if folded else []
    return Box("operations", (", ".join(shown[:2]), ", ".join([*shown[2:], *more]), *inside), "\n".join(named))


def operation(node: fx.Node) -> str:
    """The short name of what a node calls: "add", "rms_norm"."""
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    text = str(packet if packet is not None else getattr(target, "__name__", target))
    return text.rpartition(".")[2]
