"""Places boxes in rows: rank by longest path, order by barycentre, x by repeated averaging, long edges led through the rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

ROW_GAP = 34.0
BOX_GAP = 18.0
LANE = 10.0  # width kept free for an edge that passes a row
ROUNDS = 12

Block = tuple[list[str], list[float], float, float]  # ids, offsets from the block's start, wanted start, weight


@dataclass(frozen=True, slots=True)
class Placed:
    """Centres of the boxes, height of the whole, and for every edge the points it passes (its ends are on the boxes' borders)."""

    centres: dict[str, tuple[float, float]]
    routes: dict[tuple[str, str], list[tuple[float, float]]]
    width: float
    height: float


def place(sizes: Mapping[str, tuple[float, float]], edges: Iterable[tuple[str, str]]) -> Placed:
    """sizes: box id -> (width, height); edges must be acyclic. Coordinates start at 0, y grows downwards."""
    listed = list(edges)
    graph: nx.DiGraph[str] = nx.DiGraph(listed)
    graph.add_nodes_from(sizes)
    rank = _ranks(graph)
    widths = {name: size[0] for name, size in sizes.items()}
    chains = _lanes(listed, rank, widths)
    grid: nx.DiGraph[str] = nx.DiGraph()
    grid.add_nodes_from(rank)
    for chain in chains.values():
        grid.add_edges_from(pairwise(chain))
    rows = _rows(rank)
    _order(rows, grid)
    x = _columns(rows, grid, widths)
    y, height = _heights(rows, sizes)
    left = min((x[name] - widths[name] / 2 for name in x), default=0.0)
    right = max((x[name] + widths[name] / 2 for name in x), default=0.0)
    x = {name: value - left for name, value in x.items()}
    routes = {edge: _route(chain, x, y, rank, sizes) for edge, chain in chains.items()}
    return Placed({name: (x[name], y[rank[name]]) for name in sizes}, routes, right - left, height)


def _ranks(graph: "nx.DiGraph[str]") -> dict[str, int]:
    """Longest path from a source; sources (inputs) then move down to just above their first user."""
    rank: dict[str, int] = {}
    for name in nx.topological_sort(graph):
        rank[name] = max((rank[before] + 1 for before in graph.predecessors(name)), default=0)
    for name in graph:
        users = list(graph.successors(name))
        if users and not graph.in_degree(name):
            rank[name] = min(rank[user] for user in users) - 1
    return rank


def _lanes(edges: list[tuple[str, str]], rank: dict[str, int], widths: dict[str, float]) -> dict[tuple[str, str], list[str]]:
    """For every edge the chain of ids it passes; adds an id of width LANE to `rank` and `widths` for each row passed."""
    chains: dict[tuple[str, str], list[str]] = {}
    for source, target in edges:
        chain = [source]
        for row in range(rank[source] + 1, rank[target]):
            # Edges that leave the same box share their lane.
            lane = f"lane {source} {row}"
            rank[lane] = row
            widths[lane] = LANE
            chain.append(lane)
        chains[source, target] = [*chain, target]
    return chains


def _rows(rank: Mapping[str, int]) -> list[list[str]]:
    rows: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for name, row in rank.items():
        rows[row].append(name)
    return rows


def _order(rows: list[list[str]], grid: "nx.DiGraph[str]") -> None:
    """Sort each row by the mean place of its neighbours, downwards and upwards in turn."""
    for step in range(ROUNDS):
        down = step % 2 == 0
        place: dict[str, float] = {name: float(index) for row in rows for index, name in enumerate(row)}
        for row in rows if down else reversed(rows):
            wanted: dict[str, float] = {}
            for name in row:
                near = list(grid.predecessors(name) if down else grid.successors(name))
                wanted[name] = sum(place[other] for other in near) / len(near) if near else place[name]
            row.sort(key=wanted.__getitem__)
            place.update({name: float(index) for index, name in enumerate(row)})


def _columns(rows: list[list[str]], grid: "nx.DiGraph[str]", widths: Mapping[str, float]) -> dict[str, float]:
    """x of every id: moves towards the mean of the neighbours while the row keeps its order and gaps."""
    x: dict[str, float] = {}
    for row in rows:
        x.update(_spread(row, dict.fromkeys(row, 0.0), widths))
    for step in range(ROUNDS):
        for row in rows if step % 2 == 0 else reversed(rows):
            wanted: dict[str, float] = {}
            for name in row:
                near = [*grid.predecessors(name), *grid.successors(name)]
                pull = [_stiffness(name) * _stiffness(other) for other in near]
                wanted[name] = sum(x[other] * much for other, much in zip(near, pull, strict=True)) / sum(pull) if near else x[name]
            x.update(_spread(row, wanted, widths))
    return x


def _stiffness(name: str) -> float:
    """How much an id insists on its place: lanes more than boxes, so that long edges run straight."""
    return 4.0 if name.startswith("lane ") else 1.0


def _spread(row: list[str], wanted: Mapping[str, float], widths: Mapping[str, float]) -> dict[str, float]:
    """Positions nearest to the wanted ones (least squares) with gaps kept: neighbours that collide move as one block."""
    blocks: list[Block] = []
    for name in row:
        ids, offsets, start = [name], [0.0], wanted[name]
        weight = _stiffness(name)
        while blocks and blocks[-1][2] + _reach(blocks[-1], ids[0], widths) > start:
            before = blocks.pop()
            shift = _reach(before, ids[0], widths)
            start = (before[2] * before[3] + (start - shift) * weight) / (before[3] + weight)
            weight += before[3]
            ids, offsets = [*before[0], *ids], [*before[1], *(shift + offset for offset in offsets)]
        blocks.append((ids, offsets, start, weight))
    return {name: start + offset for ids, offsets, start, _ in blocks for name, offset in zip(ids, offsets, strict=True)}


def _reach(block: Block, following: str, widths: Mapping[str, float]) -> float:
    """Least distance from a block's start to the centre of the id that follows it."""
    return block[1][-1] + widths[block[0][-1]] / 2 + BOX_GAP + widths[following] / 2


def _heights(rows: list[list[str]], sizes: Mapping[str, tuple[float, float]]) -> tuple[list[float], float]:
    """The centre line of every row, and the height of all."""
    lines: list[float] = []
    top = 0.0
    for row in rows:
        tall = max((sizes[name][1] for name in row if name in sizes), default=0.0)
        lines.append(top + tall / 2)
        top += tall + ROW_GAP
    return lines, max(0.0, top - ROW_GAP)


def _route(
    chain: list[str], x: Mapping[str, float], y: list[float], rank: Mapping[str, int], sizes: Mapping[str, tuple[float, float]]
) -> list[tuple[float, float]]:
    """From the lower border of the first box through the lanes (a point above and one below each row) to the last one's top."""
    points = [(x[chain[0]], y[rank[chain[0]]] + sizes[chain[0]][1] / 2)]
    for lane in chain[1:-1]:
        row = rank[lane]
        tall = max((sizes[name][1] for name in sizes if rank[name] == row), default=0.0)
        points += [(x[lane], y[row] - tall / 2), (x[lane], y[row] + tall / 2)]
    return [*points, (x[chain[-1]], y[rank[chain[-1]]] - sizes[chain[-1]][1] / 2)]
