"""A few words of each of many tensors, spread over their memory, compared with what they were in one step for all of them.

Words are eight bytes that begin at a multiple of eight. A tensor of up to 16 of them is compared whole. A larger one
gives 16 places, one in each sixteenth of it, so a stretch of an eighth cannot lie between them; where in its sixteenth a place lies
differs from one to the next, so that they do not all lie in one column of a matrix.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLACES = 16
_WORD = 8
_GOLDEN = 0.6180339887498949  # multiples of it, without their whole part, are spread evenly


def places(tensor: Tensor) -> tuple[list[int], list[int]]:
    """(addresses of words, addresses of single bytes) to compare; none in released memory, on other devices, without an order."""
    size = tensor.numel() * tensor.element_size()
    if size == 0 or tensor.device.type != "cpu" or tensor.layout is not torch.strided or not tensor.is_contiguous():
        return [], []
    if tensor.untyped_storage().size() == 0:
        return [], []
    start = tensor.data_ptr()
    first, last = -(-start // _WORD), (start + size) // _WORD
    words = last - first
    if words < 2:
        return [], list(range(start, start + size))
    if words <= PLACES:
        edges = [*range(start, first * _WORD), *range(last * _WORD, start + size)]
        return [word * _WORD for word in range(first, last)], edges
    return [(first + int((part + part * _GOLDEN % 1) * words / PLACES)) * _WORD for part in range(PLACES)], []


def content(tensor: Tensor) -> list[int]:
    """What lies at the tensor's places now."""
    words, single = places(tensor)
    return [_at(ctypes.c_uint64, address) for address in words] + [_at(ctypes.c_uint8, address) for address in single]


def _at(kind: Any, address: int) -> int:
    value: int = kind.from_address(address).value
    return value


class Samples:
    """The content of these tensors' places when this was made; `before` has a list for each tensor."""

    __slots__ = ("_bytes", "_words", "before")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        found = [places(tensor) for tensor in tensors]
        self.before = [content(tensor) for tensor in tensors]
        self._words = _Gather([address for words, _ in found for address in words], np.dtype(np.uint64))
        self._bytes = _Gather([address for _, single in found for address in single], np.dtype(np.uint8))

    def same(self) -> bool:
        """Whether nothing differs. Only to be asked while all the memory is where it was.

        One step for all words, so that the processor waits for many of them at a time.
        """
        return self._words.same() and self._bytes.same()


class _Gather:
    """Items of one dtype at these addresses, which are multiples of its size."""

    __slots__ = ("before", "memory", "now", "numbers")

    def __init__(self, addresses: Sequence[int], dtype: "np.dtype[Any]") -> None:
        size = dtype.itemsize
        low = min(addresses, default=0)
        self.numbers = np.array([(address - low) // size for address in addresses], dtype=np.intp)
        self.now = np.empty(len(addresses), dtype=dtype)
        if not addresses:
            return
        # All memory from the first address to the last one as an array, of which only those items are ever read.
        count = (max(addresses) - low) // size + 1
        self.memory: Any = np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(dtype) * count).from_address(low))
        self.before = self._read().copy()

    def _read(self) -> "np.ndarray[Any, Any]":
        # mode: "raise" would read into a buffer first; the numbers are within the array.
        read: np.ndarray[Any, Any] = self.memory.take(self.numbers, out=self.now, mode="clip")
        return read

    def same(self) -> bool:
        return not self.numbers.size or bool((self._read() == self.before).all())
