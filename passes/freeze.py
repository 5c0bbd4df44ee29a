"""Afterwards every parameter and buffer that does not change between calls is a constant of the graph."""

from torch import Tensor

from qcompile.graph.nodes import value
from qcompile.pipeline import Pass, State
from qcompile.weights.freshness import no_version


def apply(state: State) -> None:
    """Of the candidates that the capture found, keep those whose changes would be noticed."""
    changed = {
        argument
        for node in state.graph.nodes
        if node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        for argument in node.all_input_nodes[:1]
    }
    for node, constant in state.paths.items():
        if not isinstance(value(node), Tensor):
            continue
        reason = ""
        if node in changed:
            reason = "its weight is changed by the graph itself, so it is no constant"
        elif no_version(constant.tensor):
            reason = (
                "its weight was made under torch.inference_mode(), where a later change cannot be noticed; "
                "load the model outside of it (torch.no_grad() is enough)"
            )
        if reason:
            state.refused[node] = reason
        else:
            state.constants[node] = constant
            node.meta["constant"] = constant.path


def holds(state: State) -> list[str]:
    return [f"{node.name} is no graph input" for node in state.constants if node.op != "placeholder"]


PASS = Pass(name="freeze", apply=apply, gives=frozenset({"constants"}), holds=holds)
