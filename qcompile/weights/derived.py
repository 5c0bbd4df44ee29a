"""The memory of what was derived from raw weights (readings, proofs, packed weights): one kind of cache, one test of validity."""

import threading
import weakref
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from qcompile.weights.freshness import Snapshot

V = TypeVar("V")


@dataclass(slots=True, eq=False, weakref_slot=True)
class Entry(Generic[V]):
    """A value, and the raw weights that it was derived from as they were then."""

    snapshot: Snapshot
    value: V


class Derived(Generic[V]):
    """Values by a key and the raw weights that they were derived from: valid while each is the same tensor with the same content.

    A value dies with any of its weights (their ids may be used again), and makes room for that of a later content. That a weight's
    memory was released changes nothing. The hot path of a compiled graph asks `entries` itself, by the weights' ids.
    """

    def __init__(self) -> None:
        self.entries: dict[tuple[Hashable, ...], Entry[V]] = {}
        self.lock = threading.RLock()  # a weight may die at any time, in the middle of these methods, too

    def get(self, raw: Sequence[Tensor], *key: Hashable) -> V | None:
        """What was derived from these weights as they are now, None if nothing was."""
        entry = self.entry(raw, *key)
        if entry is None or not (entry.snapshot.unchanged(raw) or not any(entry.snapshot.changed(raw))):
            return None
        return entry.value

    def entry(self, raw: Sequence[Tensor], *key: Hashable) -> Entry[V] | None:
        """What was derived from these weights last, whatever became of their content since."""
        with self.lock:
            return self.entries.get((*key, *map(id, raw)))

    def put(self, raw: Sequence[Tensor], value: V, *key: Hashable) -> Entry[V]:
        """Remember a value for these weights as they are now."""
        full = (*key, *map(id, raw))
        this = weakref.ref(self)

        def gone() -> None:
            derived, mine = this(), own()
            if derived is not None and mine is not None:
                with derived.lock:
                    if derived.entries.get(full) is mine:
                        del derived.entries[full]

        entry = Entry(Snapshot(raw, gone), value)
        own = weakref.ref(entry)
        with self.lock:
            self.entries[full] = entry
        return entry

    def drop(self, raw: Sequence[Tensor], *key: Hashable) -> V | None:
        """Forget one value, and return it."""
        with self.lock:
            entry = self.entries.pop((*key, *map(id, raw)), None)
        return None if entry is None else entry.value

    def values(self) -> Iterator[V]:
        """All values, also of weights that changed since."""
        with self.lock:
            known = self.entries.copy()  # at once: a weight that dies meanwhile would change it
        return (entry.value for entry in known.values())

    def clear(self) -> None:
        """Forget everything that can be derived again: all but what released weights gave."""
        with self.lock:
            for key, entry in self.entries.copy().items():
                if not entry.snapshot.released:
                    self.entries.pop(key, None)
