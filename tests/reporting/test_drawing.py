"""A drawing shows the sites coloured by kernel, joins what lies between them without making cycles, and its boxes never overlap."""

import random
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest
import torch
from torch import Tensor, fx, nn

from qcompile.reporting.drawing import draw, picture
from qcompile.reporting.drawing.layout import BOX_GAP, LANE, place
from qcompile.reporting.drawing.palette import NONE
from qcompile.reporting.drawing.picture import MOST_SITES
from qcompile.reporting.rows import SiteReport


class Block(nn.Module):
    """A residual block: a(x), b(x) side by side, c behind their product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        z: Tensor = self.c(torch.relu(self.a(y)) * self.b(y))
        return x + z


class Stack(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(count))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.head(x)
        return y


def traced(count: int) -> tuple[fx.GraphModule, dict[str, SiteReport]]:
    gm = fx.symbolic_trace(Stack(count))
    sites: dict[str, SiteReport] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            kernel = None if node.target == "head" else "native.int4" if str(node.target).endswith("c") else "zentorch.woq_linear"
            why = {"native.int4": ("takes <K> & N in multiples of 32",)}
            sites[node.name] = SiteReport(module=str(node.target), bits=4, group=8, n=8, k=8, kernel=kernel, reasons=why)
    return gm, sites


def test_dot_of_one_block(tmp_path: Path) -> None:
    gm, sites = traced(1)
    dot, _ = draw(gm, sites, tmp_path / "graph")
    text = dot.read_text()
    edges = sorted(line.strip() for line in text.splitlines() if " -> " in line)
    assert edges == [
        '"between_add" -> "head";',
        '"between_mul" -> "layers_0_c";',
        '"between_relu" -> "layers_0_a";',
        '"between_relu" -> "layers_0_b";',
        '"between_relu_1" -> "between_mul";',
        '"head" -> "output";',
        '"layers_0_a" -> "between_relu_1";',
        '"layers_0_b" -> "between_mul";',
        '"layers_0_c" -> "between_add";',
        '"x" -> "between_add";',
        '"x" -> "between_relu";',
    ]
    assert 'label="qcompile: 3 of 4 quantized linears rewritten\\nzentorch.woq_linear: 2, native.int4: 1, no kernel: 1"' in text
    assert f'"head" [label="head\\nint4 channel\\n8x8\\nleft as it was", fillcolor="{NONE[0]}"' in text


def test_svg_is_well_formed_and_colours_sites_by_kernel(tmp_path: Path) -> None:
    gm, sites = traced(2)
    _, path = draw(gm, sites, tmp_path / "graph")
    root = ElementTree.parse(path).getroot()
    space = {"s": "http://www.w3.org/2000/svg"}
    fills: dict[str, str] = {}
    for group in root.findall("s:g", space):
        frame, texts = group.find("s:rect", space), [text.text or "" for text in group.findall("s:text", space)]
        assert frame is not None
        fills[texts[0]] = frame.attrib["fill"]
    assert fills["head"] == NONE[0]
    assert fills["layers.0.a"] == fills["layers.1.b"] != fills["layers.0.c"]
    tips = [tip.text or "" for tip in root.iterfind(".//s:title", space)]
    assert any("takes <K> & N in multiples of 32" in tip for tip in tips)
    words = [text.text for text in root.iterfind("s:text", space)]
    assert words == ["qcompile: 6 of 7 quantized linears rewritten", "zentorch.woq_linear (4)", "native.int4 (2)", "no kernel (1)"]


def test_joined_boxes_make_no_cycle() -> None:
    gm, sites = traced(6)
    seen = picture(gm.graph, sites)
    graph: nx.DiGraph[str] = nx.DiGraph(seen.edges)
    assert nx.is_directed_acyclic_graph(graph)
    assert set(sites) <= set(seen.boxes)


def test_large_graph_draws_each_structure_once_and_counts_the_rest() -> None:
    count = MOST_SITES // 3 + 4
    gm, sites = traced(count)
    seen = picture(gm.graph, sites)
    assert set(sites) & set(seen.boxes) == {"layers_0_a", "layers_0_b", "layers_0_c", "head"}
    assert any(f"with {3 * (count - 1)} quantized linears like the drawn ones" in box.lines for box in seen.boxes.values())
    assert sum(seen.legend.values()) == len(sites)


def test_graph_without_sites_is_drawn_empty(tmp_path: Path) -> None:
    gm, _ = traced(1)
    _, path = draw(gm, {}, tmp_path / "empty")
    assert "no quantized linear" in path.read_text()


def test_constants_and_sizes_are_left_out() -> None:
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    dense = graph.call_function(torch.neg, (weight,))
    product = graph.call_function(torch.mm, (x, dense))
    graph.output(product)
    seen = picture(graph, {product.name: SiteReport(module="fc", kernel="k")}, constants={"weight"})
    assert seen.edges == [("x", "mm"), ("mm", "output")]


def overlaps(centres: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for i, j in combinations(range(len(sizes)), 2):
        across = abs(centres[i][0] - centres[j][0]) < (sizes[i][0] + sizes[j][0]) / 2
        along = abs(centres[i][1] - centres[j][1]) < (sizes[i][1] + sizes[j][1]) / 2
        if across and along:
            found.append((i, j))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_boxes_never_overlap_and_edges_run_downwards_past_them(seed: int) -> None:
    chance = random.Random(seed)
    names = [f"b{number}" for number in range(chance.randint(1, 40))]
    sizes = {name: (chance.uniform(40, 300), chance.uniform(20, 90)) for name in names}
    edges = [(a, b) for a, b in combinations(names, 2) if chance.random() < 0.08]
    placed = place(sizes, edges)
    assert not overlaps([placed.centres[name] for name in names], [sizes[name] for name in names])
    for name in names:
        x, y = placed.centres[name]
        width, height = sizes[name]
        assert x - width / 2 >= -1e-6 and x + width / 2 <= placed.width + 1e-6
        assert y - height / 2 >= -1e-6 and y + height / 2 <= placed.height + 1e-6
    for (source, target), route in placed.routes.items():
        assert all(after[1] >= before[1] for before, after in pairwise(route))
        for x, y in route[1:-1]:
            for name in names:
                if name in (source, target):
                    continue
                centre, size = placed.centres[name], sizes[name]
                inside = abs(x - centre[0]) < size[0] / 2 and abs(y - centre[1]) < size[1] / 2
                assert not inside, f"the edge {source} -> {target} passes through {name}"


def test_gap_is_kept_between_neighbours() -> None:
    placed = place({"a": (100, 20), "b": (60, 20), "c": (50, 20)}, [("a", "c"), ("b", "c")])
    assert abs(placed.centres["a"][0] - placed.centres["b"][0]) == pytest.approx(80 + BOX_GAP)
    assert LANE < BOX_GAP


def test_what_a_model_returns_besides_its_result_does_not_cross_the_picture() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(torch.neg, (x,))
    cache = graph.call_function(torch.abs, (first,))
    second = graph.call_function(torch.neg, (cache,))
    graph.output((second, cache))
    sites = {node.name: SiteReport(module=node.name, kernel="k") for node in (first, second)}
    assert picture(graph, sites).edges == [("x", "neg"), ("neg", "between_abs_1"), ("between_abs_1", "neg_1"), ("neg_1", "output")]
