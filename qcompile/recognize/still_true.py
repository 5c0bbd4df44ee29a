"""Asks whether what was recognized of a linear also holds for other constants: a changed weight, or those of an equal layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from qcompile.errors import ReleasedWeightError
from qcompile.graph.nodes import Constant, is_released
from qcompile.graph.walk import constant_nodes, subgraph
from qcompile.kernel import Kernel, Site
from qcompile.recognize.activation import Rounded, recognize_activation
from qcompile.recognize.products import Product
from qcompile.recognize.reading import Reading
from qcompile.weights.recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class Recheck:
    """A copy, apart from the graph, of all that recognition looked at, and what it found.

    reading    what was accepted, on the copy's nodes
    x, source  the rounded input on the copy's nodes and what was rounded, if that was found by trying constants' values
    inputs     constants of the copy; origins: those of the captured graph that they stand for
    """

    reading: Reading
    x: fx.Node | None
    source: fx.Node | None
    rounding: tuple[object, ...]
    inputs: tuple[fx.Node, ...]
    origins: tuple[fx.Node, ...]

    @staticmethod
    def of(product: Product, reading: Reading, rounded: Rounded | None, constants: Mapping[fx.Node, Constant]) -> "Recheck":
        roots = [product.weight, *(factor for factor, _ in product.post)]
        extra: dict[fx.Node, Constant] = {}
        if rounded is not None and rounded.tried:
            roots.append(product.x)
            extra = {rounded.source: Constant("the input", torch.empty(0, dtype=torch.float32, device="cpu"))}
        copy = Recipe.of(roots, {**constants, **extra})
        pairs = dict(zip(copy.sources, copy.inputs, strict=True))
        source = pairs.pop(rounded.source, None) if rounded is not None and extra else None
        factors = [(node, divides) for node, (_, divides) in zip(copy.roots[1:], product.post, strict=False)]
        mine = replace(product, weight=copy.roots[0], post=factors)
        x = copy.roots[-1] if source is not None and _reads_any(copy.roots[-1], source, set(pairs.values())) else None
        given = {pairs[node]: constants[node] for node in pairs}
        found = Recheck(reading.on(mine, given), x, source, (), tuple(pairs.values()), tuple(pairs))
        return replace(found, rounding=found._rounding(given))

    def problem(self, given: Mapping[fx.Node, Constant], site: Site, kernel: Kernel) -> str:
        """Why what was recognized does not hold for these contents of `origins`, or the kernel does not take them, or ""."""
        constants = {node: given[origin] for node, origin in zip(self.inputs, self.origins, strict=True)}
        released = any(is_released(constant.tensor) for constant in constants.values())
        try:
            reading = self.reading.of_others(constants)
            if isinstance(reading, str):
                return reading
            if not released and self._rounding(constants) != self.rounding:
                return "its input is rounded differently"
        except ReleasedWeightError:
            raise
        except Exception as error:  # new shapes or contents that the code itself rejects
            return f"its content cannot be read: {type(error).__name__}: {error}"
        return ", ".join(kernel.refuses(replace(site, zero_range=reading.facts.zero_range)))

    def _rounding(self, constants: Mapping[fx.Node, Constant]) -> tuple[object, ...]:
        """How the input is rounded with these constants, in terms of the copy's nodes."""
        if self.x is None or self.source is None:
            return ()
        graph = self.x.graph
        known = {node: constant for node, constant in constants.items() if node is not self.source}
        found = recognize_activation(self.x, constant_nodes(graph, known), known)
        return () if found is None else (found.source, found.quant, found.scale, found.zero)


def _reads_any(x: fx.Node, source: fx.Node, constants: set[fx.Node]) -> bool:
    """Whether constants have a part in what lies between the source and x."""
    return any(not constants.isdisjoint(node.all_input_nodes) for node in subgraph([x], {source, *constants}))
