"""Folding: what a site reads becomes graph inputs with values, each computed once from raw weights."""

import logging
from collections.abc import Sequence

from torch import Tensor, fx

from qcompile.errors import brief
from qcompile.graph.fake import imitation, mode_of
from qcompile.graph.nodes import value
from qcompile.pipeline import Folded, GraphSite, State
from qcompile.weights.cache import STORE
from qcompile.weights.disk_cache import Shelf
from qcompile.weights.recipe import Recipe

log = logging.getLogger(__name__)


def unserved(state: State, site: GraphSite, reason: str, made: dict[int, fx.Node]) -> tuple[GraphSite, ...]:
    """The site (or the parts of a fused one) without its kernel, for this reason, and with what it then reads folded."""
    parts = site.give_up(reason)
    for part in parts:
        try:
            fold_site(state, part, made)
        except Exception as error:  # as above
            log.debug("folding the dense weight of %s", part.module, exc_info=True)
            leave_packed(part, error)
    return parts


def leave_packed(site: GraphSite, error: Exception) -> None:
    """The site stays as the user wrote it, although a dense weight was asked for."""
    note = f"its dense weight could not be made: {brief(error)}"
    site.note = f"{site.note}; {note}" if site.note else note
    site.decision.fallback, site.bytes_after = "packed", site.bytes_before


def fold_site(state: State, site: GraphSite, made: dict[int, fx.Node]) -> None:
    """Fold what one site reads; made: the graph inputs that exist already, by the id of their tensors."""
    if site.kernel is not None:
        x, *packed = (node for node in site.node.args if isinstance(node, fx.Node))
        shelf = Shelf.of(site.kernel, state.options)
        nodes = inputs(state, site, packed, made, retire=site.kernel.retire_addresses, shelf=shelf)
        site.node.args = (x, *nodes)
    elif state.options.fallback == "dense" and site.weight not in state.constants:
        nodes = inputs(state, site, [site.weight], made)
        site.weight.replace_all_uses_with(nodes[0])
    else:
        site.bytes_after = site.bytes_before
        return
    site.bytes_after = sum(state.folded[node].tensor.nbytes for node in nodes)


def inputs(
    state: State,
    site: GraphSite | None,
    roots: Sequence[fx.Node],
    made: dict[int, fx.Node],
    *,
    retire: bool = False,
    shelf: Shelf | None = None,
) -> list[fx.Node]:
    """Graph inputs that hold the roots' values; one for each distinct tensor. site: the linear that they belong to, if any."""
    recipe = Recipe.of(roots, state.constants, retire, shelf)
    tensors = STORE.fetch(recipe, recipe.pick(state.constants))
    nodes = []
    for index, tensor in enumerate(tensors):
        if id(tensor) not in made:
            made[id(tensor)] = _input(state, Folded(recipe, index, tensor, site))
        nodes.append(made[id(tensor)])
    return nodes


def _input(state: State, folded: Folded) -> fx.Node:
    last = list(state.graph.find_nodes(op="placeholder"))[-1]
    with state.graph.inserting_after(last):
        node = state.graph.placeholder(f"packed_{len(state.folded)}")
    node.meta["val"] = _fake(state, folded.tensor)
    node.meta["constant"] = f"{folded.module} (packed {folded.index})"
    state.folded[node] = folded
    return node


def _fake(state: State, tensor: Tensor) -> Tensor:
    mode = mode_of(value(node) for node in state.constants)
    if mode is None:
        return tensor
    with mode:
        return imitation(tensor)
