"""Recipes (how a constant follows from raw weights) and the store that evaluates each of them once per process.

A recipe outlives the graph it came from: when a raw weight changes, its packed form is made again from the recipe, without a new
compilation. Equal recipes on the same raw weights (tied layers, recompilations, two graphs of one model) share one result.
"""

import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.errors import ReleasedWeightError
from qcompile.graph import Constant, evaluate, is_released, is_size, literal, structural_key, subgraph
from qcompile.memory import page_out, retired, trim
from qcompile.shelf import Shelf, discard, reset
from qcompile.strips import in_strips, is_foreign, is_large_matrix
from qcompile.watch import Leaves

# Packing a weight of this many bytes leaves a multiple of them behind, freed but still held by the C library.
_WORTH_TRIMMING = 4 << 20
# Contents of weights of one name that one process writes to disk; models that are loaded one after another may share names.
_MOST_KEPT = 8


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
        known = self._of_storage.get(leaf.untyped_storage()._cdata, ())
        return [k for k in known if k[0] == key[0] and k[1] == key[1] and k != key and _same_leaves(k, key)]

    def _watch(self, leaf: Tensor, key: tuple[Any, ...]) -> None:
        storage = leaf.untyped_storage()
        if storage._cdata not in self._of_storage:
            self._of_storage[storage._cdata] = set()
            weakref.finalize(storage, self._forget, storage._cdata).atexit = False
        # Results for an older content of the same weight will not be asked for again.
        for other in self._others(leaf, key):
            self._entries.pop(other, None)
            self._of_storage[storage._cdata].discard(other)
        self._of_storage[storage._cdata].add(key)

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


def no_version(tensor: Tensor) -> bool:
    """Whether torch keeps no version of this tensor, so that a change of it cannot be noticed."""
    return bool(torch.is_inference(tensor))
