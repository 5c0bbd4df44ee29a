"""What a pass does to the graph for one site takes effect as a whole, or not at all."""

from types import TracebackType
from typing import Any

from torch import Tensor, fx

from qcompile.graph.nodes import lacks_value, value
from qcompile.torch_internals.sizes import statically_known_true


class BrokenChangeError(AssertionError):
    """What was built for a site cannot stand where it is meant to; the site stays what it was."""


class Change:
    """Within the block nodes are only added; `replace` says what takes whose place at its end.

    If the block raises, or what it built is out of order, without fake values, or of another type than what it replaces, the added
    nodes are taken out again and the exception goes on. One change at a time for each graph.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.before: set[fx.Node] = set()
        self.places: list[tuple[fx.Node, fx.Node, bool]] = []

    def replace(self, old: fx.Node, new: fx.Node, *, erase: bool = False) -> None:
        """At the end of the block all users of `old` read `new`; with `erase` the old node goes."""
        self.places.append((old, new, erase))

    def __enter__(self) -> "Change":
        self.before = set(self.graph.nodes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        added = [node for node in self.graph.nodes if node not in self.before]
        problem = self._problem(added) if kind is None else ""
        if kind is not None or problem:
            for node in added:  # whatever reads what, none has a user left
                node.args, node.kwargs = (), {}
            for node in added:
                self.graph.erase_node(node)
        if problem:
            raise BrokenChangeError(problem)
        if kind is not None:
            return
        for old, new, erase in self.places:
            old.replace_all_uses_with(new)
            if erase:
                self.graph.erase_node(old)

    def _problem(self, added: list[fx.Node]) -> str:
        for node in added:
            late = next((parent for parent in node.all_input_nodes if not parent < node), None)
            if late is not None:
                return f"{node.name} would read {late.name} before it exists"
            if lacks_value(node):
                return f"{node.name} has no fake value"
        mine = set(added)
        for old, new, _ in self.places:
            early = next((user for user in old.users if user not in mine and not new < user), None)
            if early is not None:
                return f"{early.name} would read {new.name} before it exists"
            if not _alike(value(old), value(new)):
                return f"{new.name} is {_described(value(new))} instead of {_described(value(old))}"
        return ""


def _alike(old: Any, new: Any) -> bool:
    """Whether one may stand for the other, as far as can be told without a guard."""
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return type(old) is type(new)
    differs = (statically_known_true(a != b) for a, b in zip(old.shape, new.shape, strict=False))
    return old.dtype is new.dtype and old.device == new.device and old.dim() == new.dim() and not any(differs)


def _described(item: Any) -> str:
    return f"{item.dtype} {list(item.shape)}" if isinstance(item, Tensor) else type(item).__name__
