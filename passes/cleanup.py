"""Afterwards nothing dead is left, raw weights that nobody reads are no inputs any more, and every result has a fake value."""

from qcompile.graph.nodes import lacks_value
from qcompile.pipeline import Pass, State


def apply(state: State) -> None:
    """Remove what has no user."""
    state.graph.eliminate_dead_code()
    for node in list(state.graph.find_nodes(op="placeholder")):
        if not node.users and (node in state.constants or node in state.folded):
            state.graph.erase_node(node)
            state.folded.pop(node, None)
    state.gm.recompile()


def holds(state: State) -> list[str]:
    return [f"{node.name} has no fake value" for node in state.graph.nodes if lacks_value(node)]


PASS = Pass(name="cleanup", apply=apply, needs=frozenset({"lowered"}), gives=frozenset({"clean"}), holds=holds)
