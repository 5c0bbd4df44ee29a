"""Afterwards nothing dead is left, raw weights that nobody reads are no inputs any more, and every result has a fake value."""

from torch import fx

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
    return [f"{node.name} has no fake value" for node in state.graph.nodes if _lacks_value(node)]


def _lacks_value(node: fx.Node) -> bool:
    """Whether there is a result to describe, and nothing does; an assertion about a size, say, has none."""
    if node.op != "call_function" or "val" in node.meta or getattr(node.target, "__name__", "").endswith("copy_"):
        return False
    schema = getattr(node.target, "_schema", None)
    return bool(node.users) if schema is None else bool(schema.returns)


PASS = Pass(name="cleanup", apply=apply, needs=frozenset({"lowered"}), gives=frozenset({"clean"}), holds=holds)
