"""Tensors at addresses that are never used again in this process, for libraries that remember what they derived by address."""

import ctypes
import mmap
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

HUGE_PAGE = 2 << 20  # x86-64 and the common Arm configuration; only an alignment, so a wrong guess costs nothing but speed
_RESERVED: list[mmap.mmap] = []  # mappings of dead tensors: without memory, but their addresses stay taken


class _Region(np.ndarray[Any, np.dtype[np.uint8]]):
    """A numpy array that can be watched by a weak reference (a plain one cannot)."""


def retired(tensor: Tensor) -> Tensor:
    """A copy of a CPU tensor (same shape, strides, dtype and values) at an address that no later allocation gets.

    Every copy has its own anonymous mapping, aligned to 2 MiB and on huge pages where the system allows that on request. When the
    last tensor that shares the copy's storage dies, the pages go back to the system; the address range stays reserved (47 bits of
    addresses hold millions of layers). Tensors on other devices and empty ones come back as they are.
    """
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return tensor
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    region = _region(span * tensor.element_size())
    copy = torch.frombuffer(region, dtype=torch.uint8).view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
    copy.copy_(tensor)
    return copy


def _region(size: int) -> _Region:
    """`size` bytes in a mapping of their own, given back (but not unmapped) when the array dies."""
    large = size >= HUGE_PAGE
    mapping = mmap.mmap(-1, size + HUGE_PAGE if large else size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    offset = -start % HUGE_PAGE if large else 0
    if large and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without transparent huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(mapping, dtype=np.uint8)
    region = whole[offset : offset + size].view(_Region)
    weakref.finalize(region, _give_back, mapping)
    return region


def _give_back(mapping: mmap.mmap) -> None:
    """Return the pages, keep the addresses."""
    mapping.madvise(mmap.MADV_DONTNEED)
    _RESERVED.append(mapping)
