"""Recipes: how a constant follows from raw weights, as a small graph of its own, and how the packing of a site becomes one.

A recipe outlives the graph it came from: when a raw weight changes, its packed form is made again from the recipe, without a new
compilation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.debug import count
from qcompile.errors import ReleasedWeightError
from qcompile.graph.nodes import Constant, is_released, is_size, literal
from qcompile.graph.text import structural_key
from qcompile.graph.tracing import Emitter
from qcompile.graph.walk import evaluate, subgraph
from qcompile.kernel import Kernel, Site
from qcompile.meaning import Operands
from qcompile.weights.disk_cache import Shelf
from qcompile.weights.memory import page_out, retired, trim
from qcompile.weights.strips import in_strips, is_foreign, is_large_matrix

# Packing a weight of this many bytes leaves a multiple of them behind, freed but still held by the C library.
_WORTH_TRIMMING = 4 << 20


@dataclass(slots=True, eq=False)
class Recipe:
    """`roots` of a small graph of its own. Its placeholders `inputs` stand for the raw constants at `sources` of another graph."""

    graph: fx.Graph
    roots: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    sources: tuple[fx.Node, ...]
    paths: tuple[str, ...]
    key: str
    retire: bool = False
    shelf: Shelf | None = None

    @staticmethod
    def of(
        roots: Sequence[fx.Node], constants: Mapping[fx.Node, Constant], retire: bool = False, shelf: Shelf | None = None
    ) -> "Recipe":
        """A copy of the part of a graph that computes `roots` from `constants`."""
        order = subgraph(roots, set(constants))
        needed: dict[fx.Node, None] = {root: None for root in roots if root in constants}
        for node in order:
            needed.update((parent, None) for parent in node.all_input_nodes if parent in constants)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        for node in needed:
            copies[node] = graph.placeholder(node.name)
            copies[node].meta = dict(node.meta)
        for node in order:
            if node.op == "get_attr":
                literal(node)  # the copy has no module to look it up in
            copies[node] = graph.node_copy(node, lambda parent: copies[parent])
        new_roots = tuple(copies[root] for root in roots)
        inputs = tuple(copies[node] for node in needed)
        paths = tuple(constants[node].path for node in needed)
        return Recipe(graph, new_roots, inputs, tuple(needed), paths, structural_key(new_roots, inputs), retire, shelf)

    @property
    def sized(self) -> bool:
        """Whether a symbolic size has a part in it, which counts with the value of the call that was traced."""
        return any(is_size(node) for node in self.graph.nodes)

    def extended(self, roots: Sequence[fx.Node], retire: bool, shelf: Shelf | None = None) -> "Recipe":
        """The recipe of other roots in this recipe's graph, on the same raw constants."""
        constants = {
            node: Constant(path, torch.empty(0, dtype=torch.float32, device="cpu"))
            for node, path in zip(self.inputs, self.paths, strict=True)
        }
        inner = Recipe.of(roots, constants, retire, shelf)
        outer = dict(zip(self.inputs, self.sources, strict=True))
        inner.sources = tuple(outer[node] for node in inner.sources)
        return inner

    def pick(self, constants: Mapping[fx.Node, Constant]) -> list[Constant]:
        """The raw constants, in the order of `inputs`."""
        return [constants[node] for node in self.sources]

    def evaluate(self, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The roots' values; ReleasedWeightError if a raw weight is gone."""
        for path, leaf in zip(self.paths, leaves, strict=True):
            if is_released(leaf):
                raise ReleasedWeightError(path)
        count("evaluated")
        feed = dict(zip(self.inputs, leaves, strict=True))
        for node in self._large():
            feed[node] = in_strips(node, feed)
        values = evaluate(self.roots, feed)
        made = tuple(self._own(item, leaves) for item in values)
        for leaf in leaves:
            page_out(leaf)
        if sum(item.nbytes for item in made) >= _WORTH_TRIMMING:
            trim()
        return made

    def _large(self) -> list[fx.Node]:
        """Large matrices that a packing operator takes, codes of a wide layer say: all that they are made of need not be held."""
        taken = [parent for node in self.graph.nodes if is_foreign(node) for parent in node.all_input_nodes]
        return [node for node in dict.fromkeys(taken) if node not in self.inputs and is_large_matrix(node)]

    def _own(self, item: Any, leaves: Sequence[Tensor]) -> Tensor:
        if not isinstance(item, Tensor):
            raise TypeError(f"a packed constant must be a tensor, got {type(item).__name__}")
        if self.retire:
            return retired(item)
        # A view of a raw weight would change with it and could not be released.
        shares = any(item.untyped_storage().data_ptr() == leaf.untyped_storage().data_ptr() for leaf in leaves)
        return item.clone() if shares else item.detach()


def emit_pack(graph: fx.Graph, emit: Emitter, kernel: Kernel, site: Site, operands: Operands) -> tuple[fx.Node, ...]:
    """Nodes at the insertion point that pack the operands for the kernel."""
    nodes: Any = tuple(operands)
    packed: tuple[fx.Node, ...] = emit(
        graph, lambda *tensors: kernel.packed(Operands(*tensors), site), nodes, ("pack", kernel.name, site)
    )
    return packed


def pack_recipe(
    emit: Emitter,
    operands: Operands,
    kernel: Kernel,
    site: Site,
    constants: Mapping[fx.Node, Constant],
    shelf: Shelf | None = None,
) -> Recipe:
    """The recipe that makes the packed constants of a site from its raw weights; equal to the one `fold` makes later."""
    given: Any = [node for node in operands if node is not None]
    base = Recipe.of(given, constants)
    copies = iter(base.roots)
    mine: Any = [None if node is None else next(copies) for node in operands]
    return base.extended(emit_pack(base.graph, emit, kernel, site, Operands(*mine)), kernel.retire_addresses, shelf)
