"""The packed weights of this process: each recipe is evaluated once for the same raw weights, and its result is shared.

Tied layers, recompilations and two graphs of one model are such cases.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qcompile.debug import count
from qcompile.graph.nodes import Constant, is_released
from qcompile.weights import disk_cache
from qcompile.weights.derived import Derived
from qcompile.weights.recipe import Recipe

# Contents of weights of one name that one process writes to disk; models that are loaded one after another may share names.
_MOST_KEPT = 8


@dataclass(slots=True)
class Result:
    """The values of a recipe, and the file that they are mapped from, if there is one."""

    values: tuple[Tensor, ...]
    file: Path | None = None


class PackedWeights:
    """Evaluated recipes, by the recipe and the raw weights."""

    def __init__(self) -> None:
        self.results: Derived[Result] = Derived()
        self._kept: Counter[tuple[str, tuple[str, ...]]] = Counter()

    def fetch(self, recipe: Recipe, leaves: Sequence[Constant]) -> tuple[Tensor, ...]:
        """The recipe's values for these raw weights, evaluated now or before."""
        raw = [leaf.tensor for leaf in leaves]
        with self.results.lock:
            found = self.results.get(raw, recipe.key, recipe.retire)
            if found is None:
                found = self._made(recipe, raw)
                self.results.put(raw, found, recipe.key, recipe.retire)
            else:
                count("shared")
            return found.values

    def _made(self, recipe: Recipe, raw: Sequence[Tensor]) -> Result:
        if recipe.shelf is None or recipe.sized or any(map(is_released, raw)):
            return Result(recipe.evaluate(raw))
        # Weights that change while the program runs would fill the disk with contents that do not come again.
        name = (recipe.key, recipe.paths)
        keep = self._kept[name] < _MOST_KEPT and self.results.entry(raw, recipe.key, recipe.retire) is None
        self._kept[name] += keep
        values, file = recipe.shelf.fetch(
            recipe.key,
            recipe.paths,
            raw,
            lambda: recipe.evaluate(raw),
            count=len(recipe.roots),
            retire=recipe.retire,
            keep=keep,
        )
        return Result(values, file)

    def drop(self, recipe: Recipe, leaves: Sequence[Constant]) -> None:
        """Forget one result (a kernel that was tried and refused), on disk, too."""
        found = self.results.drop([leaf.tensor for leaf in leaves], recipe.key, recipe.retire)
        if found is not None and found.file is not None:
            disk_cache.discard(found.file)

    def release(self, leaf: Constant) -> None:
        """Free the raw weight's memory; results made from it stay, and are found again by the tensor without memory."""
        with self.results.lock:
            leaf.tensor.untyped_storage().resize_(0)

    def clear(self) -> None:
        """Forget every result that can be made again, and which folders could not be written to."""
        disk_cache.clear()
        self.results.clear()
        with self.results.lock:
            self._kept.clear()


STORE = PackedWeights()
