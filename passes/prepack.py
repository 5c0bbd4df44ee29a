"""Afterwards every served site is a call of its kernel on packed weights, and the packing stands in the graph, on constants."""

import logging

from qcompile.errors import brief
from qcompile.graph.change import Change
from qcompile.graph.nodes import is_call
from qcompile.kernel import KernelCall
from qcompile.operators import quantized_linear
from qcompile.pipeline import GraphSite, Pass, State, operand_nodes
from qcompile.weights.recipe import emit_pack

log = logging.getLogger(__name__)


def apply(state: State) -> None:
    """Emit each site's packing; a site whose packing fails has no kernel any more."""
    state.sites = [after for site in state.sites for after in _prepack(state, site)]


def _prepack(state: State, site: GraphSite) -> tuple[GraphSite, ...]:
    kernel = site.kernel
    if kernel is None:
        return (site,)
    try:
        with Change(state.graph) as change:
            with state.graph.inserting_before(site.node):
                packed = emit_pack(state.graph, state.emit, kernel, site.site, operand_nodes(site))
                node = state.graph.call_function(
                    KernelCall(kernel, site.site, site.decision.few_rows), (site.node.args[0], *packed)
                )
            node.meta = dict(site.node.meta)
            change.replace(site.node, node, erase=True)
    except Exception as error:  # a kernel's bug must not stop the user's model
        log.debug("packing for %s", kernel.name, exc_info=True)
        return site.give_up(f"its packing failed: {brief(error)}")
    site.moved(node)
    return (site,)


def holds(state: State) -> list[str]:
    return [
        f"{site.module} is no kernel call"
        for site in state.sites
        if site.kernel is not None and (is_call(site.node, quantized_linear) or not isinstance(site.node.target, KernelCall))
    ]


PASS = Pass(name="prepack", apply=apply, needs=frozenset({"decided"}), gives=frozenset({"packing"}), holds=holds)
