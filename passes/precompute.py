"""Afterwards no constant is left to Inductor in whose code it would leave numbers out: such constants are inputs with values.

Inductor's C++ (torch 2.13) splits a loop over columns c where it reads s[c // 32], into c // 32 and c % 32, also where 32 does not
divide the number of columns; the last ones are then never written. Code of that kind repeats values, merges dimensions and cuts the
result: scales of groups of which the last is short, s.repeat_interleave(32, 1)[:, :80]. Recognized weights are folded before; this
is for what was declined, whatever it is.
"""

import logging

from torch import Tensor, fx

from qcompile import folding
from qcompile.graph.nodes import value
from qcompile.graph.walk import constant_nodes, leaves_of, live_nodes
from qcompile.pipeline import Pass, State

log = logging.getLogger(__name__)

_PLAIN, _REPEATED, _MERGED, _CUT = range(4)


def apply(state: State) -> None:
    """Evaluate every such constant that something else than a constant reads."""
    if state.options.rest != "inductor":
        return
    for node in _endangered(state):
        try:
            (made,) = folding.inputs(state, None, [node], {})
        except Exception:  # its own code fails, as it would when it is called
            log.debug("%s could not be evaluated", node.name, exc_info=True)
            continue
        node.replace_all_uses_with(made)


def _endangered(state: State) -> list[fx.Node]:
    constant = constant_nodes(state.graph, state.constants)
    live = live_nodes(state.graph)
    found = stages(state.graph, constant)
    return [
        node
        for node in state.graph.nodes
        if found.get(node) == _CUT
        and node in live
        and isinstance(value(node), Tensor)
        and value(node).device.type == "cpu"
        and any(user in live and user not in constant for user in node.users)
        and leaves_of(node, state.constants)
    ]


def stages(graph: fx.Graph, constant: set[fx.Node]) -> dict[fx.Node, int]:
    """How far each constant node has come on the way from values repeated, to dimensions merged, to the result cut."""
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node not in constant:
            continue
        stage = max((found.get(parent, _PLAIN) for parent in node.all_input_nodes), default=_PLAIN)
        sizes = [value(parent).numel() for parent in node.all_input_nodes if isinstance(value(parent), Tensor)]
        mine = [item for item in _results(node) if isinstance(item, Tensor)]
        if stage == _PLAIN and sizes and any(item.numel() > min(sizes) for item in mine):
            stage = _REPEATED
        elif stage == _REPEATED and _reshapes(node, mine):
            stage = _MERGED
        if stage == _MERGED and any(item.numel() < max(sizes, default=0) for item in mine):
            stage = _CUT
        found[node] = stage
    return found


def _results(node: fx.Node) -> list[object]:
    item = value(node)
    return list(item) if isinstance(item, tuple | list) else [item]


def _reshapes(node: fx.Node, mine: list[Tensor]) -> bool:
    """Whether the node has fewer dimensions than what it reads."""
    most = max((value(parent).dim() for parent in node.all_input_nodes if isinstance(value(parent), Tensor)), default=0)
    return any(item.dim() < most for item in mine)


PASS = Pass(name="precompute", apply=apply, needs=frozenset({"lowered"}), gives=frozenset({"precomputed"}))
