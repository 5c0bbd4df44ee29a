"""Notices that a raw weight is no longer what something was derived from: another tensor, storage, version, or other content.

A version counter sees in-place operators, but not writes through `p.data`, numpy or another process, and `p.data = t` moves only
the storage. Ids and addresses of what died are used again. So tensors are compared by id, version and address, what was derived
from a storage ends with it, and a few of the bytes are compared, too (qcompile.weights.samples): a change of everything in a
stretch of an eighth of a weight is noticed however it is done; a change of single elements or rows through `p.data` may not be.

Only storages are referred to weakly, never tensors: torch.utils.swap_tensors refuses a tensor that has a weak reference.
"""

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qcompile.graph.nodes import is_released
from qcompile.torch_internals.tensors import version
from qcompile.weights.samples import Samples, content


class Snapshot:
    """Raw weights as they were when something was derived from them. Holds neither them nor their storages; `gone` is called when
    one dies.

    A storage dies with the last tensor over it, or when `p.data = t` takes it away from its only one. The tensors are the ones with
    these ids: whoever keeps a snapshot by their ids drops it in `gone`.
    """

    __slots__ = ("__weakref__", "_filled", "addresses", "alive", "samples", "storages", "versions")

    def __init__(self, raw: Sequence[Tensor], gone: Callable[[], None] = lambda: None) -> None:
        self.alive = True
        this = weakref.ref(self)

        def dead(_: object) -> None:
            if (snapshot := this()) is not None:
                snapshot.alive = False
            gone()

        self.storages = [weakref.ref(tensor.untyped_storage(), dead) for tensor in raw]
        self.versions = list(map(version, raw))
        self.addresses = list(map(Tensor.data_ptr, raw))
        self.samples = Samples(raw)
        self._filled = [tensor.numel() > 0 for tensor in raw]

    @property
    def released(self) -> bool:
        """Whether the storage of one of them lives, but has no memory any more."""
        known = zip(self.storages, self._filled, strict=True)
        return any(filled and (storage := reference()) is not None and storage.nbytes() == 0 for reference, filled in known)

    def unchanged(self, raw: Sequence[Tensor]) -> bool:
        """Whether the weights are what they were. Runs on every call: about 0.3 microseconds for each weight (bench/guards.py)."""
        return (
            list(map(version, raw)) == self.versions
            and list(map(Tensor.data_ptr, raw)) == self.addresses
            and self.alive  # so the memory is there: all storages live, each at its address
            and self.samples.same()
        )

    def changed(self, raw: Sequence[Tensor]) -> list[bool]:
        """Which weights changed; being released is none. What changed behind its version counter's back gets a higher version."""
        result: list[bool] = []
        for index, tensor in enumerate(raw):
            same = version(tensor) == self.versions[index] and self.storages[index]() is tensor.untyped_storage()
            if same and not is_released(tensor):
                same = tensor.data_ptr() == self.addresses[index]
                if same and content(tensor) != self.samples.before[index]:
                    torch.autograd.graph.increment_version(tensor)
                    same = False
            result.append(not same)
        return result


def no_version(tensor: Tensor) -> bool:
    """Whether torch keeps no version of this tensor, so that a change of it cannot be noticed."""
    return bool(torch.is_inference(tensor))
