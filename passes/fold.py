"""Afterwards packed weights are graph inputs with values; they were computed one layer at a time, equal ones once."""

import logging

from torch import fx

from qcompile import folding
from qcompile.errors import brief
from qcompile.pipeline import GraphSite, Pass, State

log = logging.getLogger(__name__)


def apply(state: State) -> None:
    """Evaluate the packing of served sites, and the dense weight of the others if fallback is "dense"."""
    made: dict[int, fx.Node] = {}
    state.sites = [after for site in state.sites for after in _folded(state, site, made)]


def _folded(state: State, site: GraphSite, made: dict[int, fx.Node]) -> tuple[GraphSite, ...]:
    try:
        folding.fold_site(state, site, made)
    except Exception as error:  # out of memory, a library's refusal, a released weight
        log.debug("folding %s", site.module, exc_info=True)
        if site.kernel is not None:
            return folding.unserved(state, site, f"packing failed: {brief(error)}", made)
        folding.leave_packed(site, error)
    return (site,)


def holds(state: State) -> list[str]:
    served = [site for site in state.sites if site.kernel is not None]
    return [f"{site.module} still reads {node}" for site in served for node in site.node.args[1:] if node not in state.folded]


PASS = Pass(name="fold", apply=apply, needs=frozenset({"packing"}), gives=frozenset({"folded"}), holds=holds)
