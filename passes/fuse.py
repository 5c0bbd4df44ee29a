"""Afterwards linears of one kind that read the same input (q/k/v, gate/up) are one site, computed by one call and cut apart."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from math import gcd
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.errors import brief
from qcompile.graph.change import Change
from qcompile.graph.fake import within
from qcompile.graph.nodes import aten, value
from qcompile.graph.walk import subgraph, through_views
from qcompile.meaning import ALONG_N
from qcompile.operators import quantized_linear
from qcompile.pipeline import GraphSite, Pass, State, operand_nodes

log = logging.getLogger(__name__)


def apply(state: State) -> None:
    """Group the sites and replace each group of two or more."""
    groups: dict[tuple[Any, ...], list[GraphSite]] = {}
    for site in state.sites:
        groups.setdefault(_kind(site), []).append(site)
    state.sites = [site for group in groups.values() for site in _joined_or_apart(state, group)]


def _joined_or_apart(state: State, group: list[GraphSite]) -> list[GraphSite]:
    if len(group) == 1:
        return group
    try:
        return [_fused(state, group)]
    except Exception as error:  # each of them can be served alone
        log.debug("joining %d linears", len(group), exc_info=True)
        for site in group:
            site.note = site.alone = f"not joined with the other linears on its input: {brief(error)}"
        return group


def _kind(site: GraphSite) -> tuple[Any, ...]:
    """Equal for sites that one call can compute: same input, same meaning but for N. Act-order sites gather x differently."""
    x, *_ = site.node.args
    assert isinstance(x, fx.Node)
    if site.site.act_order or site.alone:
        return (id(site),)
    operands = operand_nodes(site)
    return (
        through_views(x),
        str(value(x).shape),
        replace(site.site, n=0, rows=0, zero_range=(0, 0)),
        operands.act_scale,
        operands.act_zero,
    )


def _fused(state: State, parts: list[GraphSite]) -> GraphSite:
    """One site for all parts. Its call stands where the first of theirs does, before whatever reads one of the results."""
    graph, first = state.graph, parts[0]
    place = min(part.node for part in parts)
    x = place.args[0]
    assert isinstance(x, fx.Node)
    operands = [operand_nodes(part) for part in parts]
    _move_before(place, [node for each in operands for node in each if node is not None])
    sizes = [part.site.n for part in parts]
    with Change(graph) as change:
        with graph.inserting_before(place):
            rows: Any = {name: _joined(state, [getattr(each, name) for each in operands]) for name in ALONG_N}
            whole = operands[0]._replace(**rows)
            node = graph.call_function(quantized_linear, (x, *whole), first.node.kwargs)
            node.meta = {**first.node.meta, "val": _wide(value(first.node), sum(sizes))}
            cuts = list(_cut(graph, node, sizes))
        for part, cut in zip(parts, cuts, strict=True):
            cut.meta = {**part.node.meta, "val": value(cut)}
            change.replace(part.node, cut)
        joined = _site_of(parts, node, cuts)
    names = ", ".join(part.module.rpartition(".")[2] for part in parts)
    for part, cut in zip(parts, cuts, strict=True):
        part.note = f"one call for {names}"
        if part.result is part.node:
            part.result = cut
    return joined


def _site_of(parts: list[GraphSite], node: fx.Node, cuts: list[fx.Node]) -> GraphSite:
    first = parts[0]
    lows = [part.site.zero_range[0] for part in parts]
    highs = [part.site.zero_range[1] for part in parts]
    rows = gcd(*(size for part in parts for size in (part.site.rows, part.site.n)))
    site = replace(first.site, n=sum(part.site.n for part in parts), zero_range=(min(lows), max(highs)), rows=rows)
    return GraphSite(
        node,
        node,
        first.original,
        first.weight,
        first.leaves,
        first.proposal,
        first.reader,
        site,
        first.recheck,
        first.module,
        first.identity,
        sum(part.bytes_before for part in parts),
        parts=tuple(parts),
        cuts=tuple(cuts),
    )


def _move_before(place: fx.Node, constants: list[Any]) -> None:
    """Move what constants are computed from to before `place`, where it is not already.

    What already stands there stays: it may have other readers in between.
    """
    for node in subgraph(constants, set(), lambda node: node < place):
        place.prepend(node)


def _joined(state: State, nodes: list[Any]) -> fx.Node | None:
    """The constants one below the other, along N."""
    if nodes[0] is None:
        return None
    joined: fx.Node = state.emit(state.graph, lambda *tensors: torch.cat(tensors), nodes, "cat")
    return joined


def _cut(graph: fx.Graph, node: fx.Node, sizes: list[int]) -> Iterable[fx.Node]:
    start = 0
    for size in sizes:
        cut = graph.call_function(aten.slice.Tensor, (node, -1, start, start + size))
        cut.meta["val"] = value(node)[..., start : start + size]
        start += size
        yield cut


def _wide(like: Tensor, n: int) -> Tensor:
    with within([like]):
        return like.new_empty((*like.shape[:-1], n))


def holds(state: State) -> list[str]:
    kinds = [_kind(site) for site in state.sites]
    return [f"{site.module} could be fused further" for site, kind in zip(state.sites, kinds, strict=True) if kinds.count(kind) > 1]


PASS = Pass(
    name="fuse",
    apply=apply,
    needs=frozenset({"canonical"}),
    gives=frozenset({"canonical", "fused"}),
    holds=holds,
    optional=True,
)
