"""Turns names of one layer into those of another: "model.layers.0.mlp" into "model.layers.7.mlp"."""

from collections.abc import Iterable
from dataclasses import dataclass

from qcompile.graph.nodes import Constant


@dataclass(frozen=True, slots=True)
class Renaming:
    """Prefixes of dotted paths and what stands for them in the other layer."""

    prefixes: dict[str, str]

    @staticmethod
    def of(pairs: Iterable[tuple[Constant, Constant]]) -> "Renaming":
        """What distinguishes the paths of the same constants of two layers: all but the steps at the end that are equal."""
        found: dict[str, str] = {}
        for mine, theirs in pairs:
            left, right = mine.path.split("."), theirs.path.split(".")
            while left and right and left[-1] == right[-1]:
                left.pop()
                right.pop()
            if left:
                found[".".join(left)] = ".".join(right)
        return Renaming(found)

    def __call__(self, text: str) -> str:
        """The text with the longest known prefix, followed by a dot, a colon or nothing, replaced."""
        for prefix in sorted(self.prefixes, key=len, reverse=True):
            rest = text.removeprefix(prefix)
            if len(rest) < len(text) and rest[:1] in {"", ".", ":"}:
                return self.prefixes[prefix] + rest
        return text
