"""Tensors at addresses that are never used again in this process, for libraries that remember what they derived by address."""

import ctypes
import mmap
import sys
import weakref
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

HUGE_PAGE = 2 << 20  # x86-64 and the common Arm configuration; only an alignment, so a wrong guess costs nothing but speed
MADV_PAGEOUT = 21  # linux/include/uapi/asm-generic/mman-common.h, Linux 5.4 and later; an error elsewhere, which changes nothing
PROT_NONE, MAP_FIXED, MAP_NORESERVE = 0x0, 0x10, 0x4000  # linux/include/uapi/asm-generic/mman-common.h
_RESERVED: list[mmap.mmap] = []  # mappings of dead tensors, kept so that Python does not unmap them


class Region(np.ndarray[Any, np.dtype[np.uint8]]):
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


def _region(size: int) -> Region:
    """`size` bytes in a mapping of their own, given back (but not unmapped) when the array dies."""
    large = size >= HUGE_PAGE
    mapping = mmap.mmap(-1, size + HUGE_PAGE if large else size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    offset = -start % HUGE_PAGE if large else 0
    if large and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without transparent huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(mapping, dtype=np.uint8)
    region = whole[offset : offset + size].view(Region)
    weakref.finalize(region, _give_back, mapping, start)
    return region


def mapped(file: BinaryIO, size: int, *, retire: bool) -> Region:
    """The first `size` bytes of an open file as memory: pages of the system's cache that processes share, copied when written to.

    On huge pages where the file system keeps such (and the file is large). retire: when the array dies, its addresses stay
    reserved, as those of `retired`. Nobody may cut the file or change it in place while the array lives.
    """
    mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    if size >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # as above
            mapping.madvise(mmap.MADV_HUGEPAGE)
    region = np.frombuffer(mapping, dtype=np.uint8).view(Region)
    if retire:
        weakref.finalize(region, _give_back, mapping, region.ctypes.data)
    return region


def _give_back(mapping: mmap.mmap, start: int) -> None:
    """Return the pages, keep the addresses: the range becomes inaccessible, costs no memory and merges with its neighbours."""
    _RESERVED.append(mapping)
    if not _reserve(start, len(mapping)):
        mapping.madvise(mmap.MADV_DONTNEED)


def _reserve(start: int, size: int) -> bool:
    """Replace the mapping of [start, start + size) by an inaccessible one (mmap(2), MAP_FIXED | MAP_NORESERVE); False off Linux."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
    return bool(libc.mmap(start, size, PROT_NONE, flags, -1, 0) == start)


def discard_pages(tensor: Tensor) -> None:
    """Give back the pages of a CPU tensor's storage that nobody will read again, without freeing it; its content becomes zero.

    For storage that a library handed out and never frees. Only pages that lie wholly inside are returned, so it is harmless if the
    storage is freed after all: an allocator's own records lie outside. madvise(2), MADV_DONTNEED; nothing happens off Linux.
    """
    if sys.platform == "linux":
        _advise(tensor, mmap.MADV_DONTNEED)


def page_out(tensor: Tensor) -> None:
    """Let the system take back the memory of a tensor that lies over a file; whoever reads it again gets it from the file.

    For storage that torch cannot free. madvise(2), MADV_PAGEOUT: the content stays what it is, whatever the memory is. Nothing
    happens off Linux, on other devices and to memory of torch's own.
    """
    if sys.platform == "linux" and tensor.device.type == "cpu" and not tensor.untyped_storage().resizable():
        _advise(tensor, MADV_PAGEOUT)


def trim() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc keeps it); some milliseconds."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _advise(tensor: Tensor, advice: int) -> None:
    """madvise(2) for the pages that lie wholly inside the tensor's storage."""
    start, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        libc.madvise(first, last - first, advice)
