"""Between a canonical call and a packed kernel call: the operands' nodes, the packing as graph nodes, the packing as a recipe."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from qcompile.emit import Emitter
from qcompile.graph import Constant
from qcompile.kernels import Kernel, Site
from qcompile.meaning import Operands
from qcompile.pipeline import GraphSite
from qcompile.shelf import Shelf
from qcompile.store import Recipe


class KernelCall:
    """A kernel for one kind of site as a call target: (x, *packed) -> y. `lower` replaces it by the operators it consists of.

    few_rows: x of fewer rows runs in the kernel that kernel.few names.
    """

    def __init__(self, kernel: Kernel, site: Site, few_rows: int = 0) -> None:
        self.kernel, self.site, self.few_rows = kernel, site, few_rows
        self.display_name = self.__name__ = self.__qualname__ = kernel.name

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that do the same."""
        return ("call", self.kernel.name, self.site, self.few_rows)

    def __call__(self, x: Tensor, *packed: Tensor) -> Tensor:
        if self.few_rows and self.kernel.few is not None:
            return self.kernel.few.call(x, packed, self.site, self.few_rows)
        return self.kernel.call(x, packed, self.site)


def operand_nodes(site: GraphSite) -> Operands:
    """The nodes that are the canonical call's constant operands."""
    _, codes, scales, zeros, perm, bias, act_scale, act_zero, *_ = site.node.args
    nodes: Any = (codes, scales, zeros, perm, bias, act_scale, act_zero)
    return Operands(*nodes)


def emit_pack(graph: fx.Graph, emit: Emitter, kernel: Kernel, site: Site, operands: Operands) -> tuple[fx.Node, ...]:
    """Nodes at the insertion point that pack the operands for the kernel."""
    nodes: Any = tuple(operands)
    packed: tuple[fx.Node, ...] = emit(
        graph, lambda *tensors: tuple(kernel.pack(Operands(*tensors), site)), nodes, ("pack", kernel.name, site)
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
