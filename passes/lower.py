"""Afterwards kernel calls are the operators they consist of, and a site without a kernel is back as it was."""

import logging

from torch import fx

from qcompile import folding
from qcompile.errors import brief
from qcompile.graph.change import Change
from qcompile.graph.walk import live_nodes
from qcompile.kernel import KernelCall
from qcompile.operators import quantized_linear
from qcompile.pipeline import GraphSite, Pass, State

log = logging.getLogger(__name__)


def apply(state: State) -> None:
    """Copy the operators of each kind of call to every site of that kind; a site whose call cannot be traced has no kernel."""
    state.sites = [after for site in state.sites for after in _lowered(state, site)]
    state.need_all_served()  # packing may have failed since the decision
    for site in state.sites:
        if site.kernel is None:
            site.result.replace_all_uses_with(site.original)


def _lowered(state: State, site: GraphSite) -> tuple[GraphSite, ...]:
    if site.kernel is None:
        return (site,)
    try:
        _lower(state, site)
    except Exception as error:  # a kernel's bug must not stop the user's model
        log.debug("lowering %s", site.module, exc_info=True)
        return folding.unserved(state, site, f"its call cannot be traced: {brief(error)}", {})
    return (site,)


def _lower(state: State, site: GraphSite) -> None:
    call = site.node.target
    assert isinstance(call, KernelCall)
    arguments = [node for node in site.node.args if isinstance(node, fx.Node)]
    with Change(state.graph) as change:
        with state.graph.inserting_before(site.node):
            result = state.emit(state.graph, call, arguments, call.key)
        change.replace(site.node, result, erase=True)
    site.moved(result)


def holds(state: State) -> list[str]:
    live = {node.target for node in live_nodes(state.graph) if node.op == "call_function"}
    wrong = [f"{target} is left" for target in live if isinstance(target, KernelCall)]
    reference = any(site.kernel is not None and site.kernel.target == "reference" for site in state.sites)
    return wrong if reference or quantized_linear not in live else [*wrong, "a canonical call is left"]


PASS = Pass(name="lower", apply=apply, needs=frozenset({"folded"}), gives=frozenset({"lowered"}), holds=holds)
