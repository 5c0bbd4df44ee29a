"""The store that evaluates each recipe once per process: equal recipes on the same raw weights share one result.

Tied layers, recompilations and two graphs of one model are such cases.
"""

import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from qcompile.graph.nodes import Constant, is_released
from qcompile.torch_internals.tensors import storage_address, storage_key
from qcompile.weights.disk_cache import discard, reset
from qcompile.weights.freshness import Leaves
from qcompile.weights.recipe import Recipe

# Contents of weights of one name that one process writes to disk; models that are loaded one after another may share names.
_MOST_KEPT = 8


@dataclass(slots=True)
class _Entry:
    values: tuple[Tensor, ...]
    leaves: Leaves
    file: Path | None = None


@dataclass(slots=True)
class Store:
    """Evaluated recipes by (recipe, identities of the raw weights); an entry dies with the storage of any of its raw weights."""

    _entries: dict[tuple[Any, ...], _Entry] = field(default_factory=dict)
    _of_storage: dict[int, set[tuple[Any, ...]]] = field(default_factory=dict)
    _kept: Counter[tuple[str, tuple[str, ...]]] = field(default_factory=Counter)
    _lock: Any = field(default_factory=threading.RLock)

    def fetch(self, recipe: Recipe, leaves: Sequence[Constant]) -> tuple[Tensor, ...]:
        """The recipe's values for these raw weights, evaluated now or before."""
        key = (recipe.key, recipe.retire, *(leaf.identity for leaf in leaves))
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.leaves.same(leaves):
                values, file = self._make(recipe, leaves, key)
                entry = _Entry(values, Leaves(leaves), file)
                self._entries[key] = entry
                for leaf in leaves:
                    self._watch(leaf.tensor, key)
            return entry.values

    def _make(self, recipe: Recipe, leaves: Sequence[Constant], key: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], Path | None]:
        tensors = [leaf.tensor for leaf in leaves]
        if recipe.shelf is None or recipe.sized or any(map(is_released, tensors)):
            return recipe.evaluate(tensors), None
        # Weights that change while the program runs would fill the disk with contents that do not come again.
        name = (recipe.key, recipe.paths)
        keep = self._kept[name] < _MOST_KEPT and not any(self._others(leaf.tensor, key) for leaf in leaves)
        self._kept[name] += keep
        return recipe.shelf.fetch(
            recipe.key,
            recipe.paths,
            tensors,
            lambda: recipe.evaluate(tensors),
            count=len(recipe.roots),
            retire=recipe.retire,
            keep=keep,
        )

    def _others(self, leaf: Tensor, key: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Keys of results for other contents of the same weights, over this leaf's storage."""
        known = self._of_storage.get(storage_key(leaf), ())
        return [k for k in known if k[0] == key[0] and k[1] == key[1] and k != key and _same_leaves(k, key)]

    def _watch(self, leaf: Tensor, key: tuple[Any, ...]) -> None:
        storage = leaf.untyped_storage()
        if storage_address(storage) not in self._of_storage:
            self._of_storage[storage_address(storage)] = set()
            weakref.finalize(storage, self._forget, storage_address(storage)).atexit = False
        # Results for an older content of the same weight will not be asked for again.
        for other in self._others(leaf, key):
            self._entries.pop(other, None)
            self._of_storage[storage_address(storage)].discard(other)
        self._of_storage[storage_address(storage)].add(key)

    def _forget(self, storage: int) -> None:
        with self._lock:
            for key in self._of_storage.pop(storage, ()):
                self._entries.pop(key, None)

    def drop(self, recipe: Recipe, leaves: Sequence[Constant]) -> None:
        """Forget one result (a kernel that was tried and refused), on disk, too."""
        with self._lock:
            entry = self._entries.pop((recipe.key, recipe.retire, *(leaf.identity for leaf in leaves)), None)
            if entry is not None and entry.file is not None:
                discard(entry.file)

    def release(self, leaf: Constant) -> None:
        """Free the raw weight's memory; results made from it stay, and are found again by the tensor without memory."""
        with self._lock:
            leaf.tensor.untyped_storage().resize_(0)

    def clear(self) -> None:
        """Forget every result that can be made again, and which folders could not be written to."""
        reset()
        with self._lock:
            self._kept.clear()
            for key in [key for key, entry in self._entries.items() if not entry.leaves.released]:
                del self._entries[key]


def _same_leaves(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    return [part[0] for part in left[2:]] == [part[0] for part in right[2:]]


STORE = Store()
