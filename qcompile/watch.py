"""Notices that a raw weight is no longer what something was derived from: another tensor, storage, version, or other content.

A version counter sees in-place operators, but not writes through `p.data`, numpy or another process, and `p.data = t` moves only
the storage. Ids and addresses of what died are used again. So tensors are compared by id, version and address, their storages are
kept from being used again, and a few of their bytes are compared, too: replacing a weight's whole content is noticed however it is
done; changing single elements through `p.data` is not.
"""

import ctypes
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from qcompile.graph import Constant, is_released

_read = operator.attrgetter("value")
_version = operator.attrgetter("_version")
_WORDS: tuple[tuple[int, Any], ...] = ((8, ctypes.c_uint64), (4, ctypes.c_uint32), (2, ctypes.c_uint16), (1, ctypes.c_uint8))


def probes(tensor: Tensor) -> list[Any]:
    """Two places in the tensor's memory (one in a tiny tensor), as ctypes objects; none for released memory and other devices.

    Only to be read while the tensor's storage lives at this address.
    """
    size = tensor.numel() * tensor.element_size()
    if size == 0 or tensor.device.type != "cpu" or tensor.untyped_storage().size() == 0 or not tensor.is_contiguous():
        return []
    width, word = next((width, word) for width, word in _WORDS if width <= size)
    # Odd parts, so that they do not both lie at the beginning of a row.
    places = {size * 29 // 97 // width * width, size * 71 // 97 // width * width}
    return [word.from_address(tensor.data_ptr() + place) for place in sorted(places)]


class Leaves:
    """Raw weights as something was derived from them; holds neither them nor their memory alive."""

    __slots__ = ("content", "storages", "tensors")

    def __init__(self, leaves: Sequence[Constant]) -> None:
        self.tensors = tuple(weakref.ref(leaf.tensor) for leaf in leaves)
        self.storages = tuple(StorageWeakRef(leaf.tensor.untyped_storage()) for leaf in leaves)
        self.content = [_content(leaf.tensor) for leaf in leaves]

    @property
    def released(self) -> bool:
        """Whether one of them lives, but has no memory any more."""
        return any((tensor := reference()) is not None and is_released(tensor) for reference in self.tensors)

    def same(self, leaves: Sequence[Constant]) -> bool:
        """Whether these are still the same tensors with the same content, given that their identities are equal."""
        for leaf, reference, storage, content in zip(leaves, self.tensors, self.storages, self.content, strict=True):
            if reference() is not leaf.tensor or storage.expired():
                return False
            if not is_released(leaf.tensor) and _content(leaf.tensor) != content:
                return False
        return True


def _content(tensor: Tensor) -> list[int]:
    return list(map(_read, probes(tensor)))


class Watch:
    """The raw weights of one packing as they were then. Keeps their storages (not the tensors); `gone` is called when one dies.

    The tensors are the ones with these ids: whoever keeps a Watch by their ids drops it in `gone`.
    """

    def __init__(self, raw: Sequence[Tensor], gone: Callable[[], None]) -> None:
        self.references = [weakref.ref(tensor, lambda _: gone()) for tensor in raw]
        self.storages = [tensor.untyped_storage() for tensor in raw]
        self.versions = list(map(_version, raw))
        self.addresses = list(map(Tensor.data_ptr, raw))
        self.places = [probes(tensor) for tensor in raw]
        self.probes = [place for places in self.places for place in places]
        self.content = list(map(_read, self.probes))

    def unchanged(self, raw: Sequence[Tensor]) -> bool:
        """Whether the weights are what they were. Runs on every call: about 0.3 microseconds for each weight (bench/guards.py)."""
        return (
            list(map(_version, raw)) == self.versions
            and list(map(Tensor.data_ptr, raw)) == self.addresses
            and list(map(_read, self.probes)) == self.content  # the memory is there: it is ours, at the same address
        )

    def changed(self, raw: Sequence[Tensor]) -> list[bool]:
        """Which weights changed. One whose content changed behind its version counter's back gets a higher version."""
        content = iter(self.content)
        result: list[bool] = []
        for index, tensor in enumerate(raw):
            before = [next(content) for _ in self.places[index]]
            same = tensor._version == self.versions[index] and tensor.untyped_storage()._cdata == self.storages[index]._cdata
            if same and not is_released(tensor):
                same = tensor.data_ptr() == self.addresses[index]
                if same and list(map(_read, self.places[index])) != before:
                    torch.autograd.graph.increment_version(tensor)
                    same = False
            result.append(not same)
        return result
