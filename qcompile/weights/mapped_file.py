"""Tensors in a safetensors file that is mapped, not read: every tensor begins at a multiple of 64 bytes, damage is noticed.

The file is an ordinary one of https://github.com/huggingface/safetensors (8 bytes with the length of a JSON header, the header,
the tensors without gaps). That format promises no alignment, so the header is filled up with blanks to a whole page and tensors
"pad.<n>" fill up to the next 64 bytes; kernels rely on both, and readers of the format accept both. The last tensor, "check", is a
digest (BLAKE3 by our own operator) that every byte before it has a part in, at its place.
"""

import contextlib
import errno
import json
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.weights import fingerprint
from qcompile.weights.cache_folder import UnfitFileError, open_trusted, replacing
from qcompile.weights.memory import Region, mapped

FORMAT = "qcompile packed weights 2"
ALIGNMENT = 64
_PAGE = 4096
_MOST_PIECES = 512  # of one writev(2); systems take 1024
_MOST_HEADER = 4 << 20  # many times what a layer's file has
_MOST_DIMENSIONS, _MOST_EXTENT = 16, 1 << 48
_CHECK, _CHECK_BYTES = "check", 32
_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
}  # fmt: skip
NAMES = {getattr(torch, ours): theirs for ours, theirs in _NAMES.items()}
DTYPES = {theirs: ours for ours, theirs in NAMES.items()}


class DamagedFileError(Exception):
    """The file is not what `write` made for this key: cut, changed, foreign, or made for another key."""


def storable(tensors: Sequence[Tensor]) -> bool:
    """Whether a file gives these tensors back as they are: on the CPU, contiguous, whole, of a dtype the format knows."""
    return all(
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and tensor.dtype in NAMES
        and tensor.untyped_storage().nbytes() == tensor.nbytes  # an opaque order may hide behind a tensor's end
        for tensor in tensors
    )


def write(path: Path, key: str, tensors: Sequence[Tensor], notes: dict[str, str]) -> None:
    """Put the tensors into a file that readers see whole or not at all, however many processes write it; OSError if not possible.

    The file is readable only: who maps it counts on it never being changed in place, only replaced.
    """
    table, chunks = _layout(tensors)
    header = json.dumps({"__metadata__": {"format": FORMAT, "key": key, **notes}, **table}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % _PAGE)
    if len(header) > _MOST_HEADER:
        raise OSError(errno.EFBIG, f"a header of {len(header)} bytes", str(path))
    begin = struct.pack("<Q", len(header)) + header
    with replacing(path) as file:
        _write_all(file, [begin, *chunks, _check(begin, chunks)])


def _write_all(file: int, pieces: Sequence[Any]) -> None:
    """In as few calls as possible: file systems with large pages choose their size by the length of a write."""
    rest = [memoryview(piece) for piece in pieces if len(piece)]
    while rest:
        done = os.writev(file, rest[:_MOST_PIECES])
        if done <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while rest and done >= len(rest[0]):
            done -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][done:]


def _layout(tensors: Sequence[Tensor]) -> tuple[dict[str, Any], list[Any]]:
    """The header's table, with an entry for every tensor, padding before it, and at last the check; the bytes of all but that."""
    table: dict[str, Any] = {}
    chunks: list[Any] = []
    at = 0
    for index, tensor in enumerate(tensors):
        if pad := -at % ALIGNMENT:
            table[f"pad.{index}"] = {"dtype": "U8", "shape": [pad], "data_offsets": [at, at + pad]}
            chunks.append(np.zeros(pad, dtype=np.uint8))
            at += pad
        size = tensor.nbytes
        table[str(index)] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        chunks.append(tensor.detach().reshape(-1).view(torch.uint8).numpy())
        at += size
    table[_CHECK] = {"dtype": "U8", "shape": [_CHECK_BYTES], "data_offsets": [at, at + _CHECK_BYTES]}
    return table, chunks


def _check(begin: bytes, chunks: Sequence[Any]) -> bytes:
    """The digest of the file's first bytes (length and header) and of the digests of all that follow, in their order."""
    return _digest(bytearray(b"".join([_digest(bytearray(begin)), *map(_digest, chunks)])))


def _digest(content: Any) -> bytes:
    """Of a buffer that may be written to; torch warns of others."""
    raw = torch.frombuffer(content, dtype=torch.uint8) if len(content) else torch.empty(0, dtype=torch.uint8, device="cpu")
    return bytes.fromhex(fingerprint.digest(raw).rpartition(" ")[2])


def read(path: Path, key: str, *, retire: bool = False) -> tuple[Tensor, ...]:
    """The tensors of a file that `write` made for this key, over the mapped file itself; DamagedFileError says what is wrong.

    Every byte of it is compared with its check once. retire: at addresses that this process never uses again
    (qcompile.weights.memory). FileNotFoundError and other OSErrors come through.
    """
    try:
        file = open(path, "rb", opener=open_trusted)  # noqa: SIM115 - closed below
    except UnfitFileError as error:
        raise DamagedFileError(str(error)) from None
    with file:
        size = os.fstat(file.fileno()).st_size
        begin = file.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
        if not 2 <= length <= min(size - 8, _MOST_HEADER):
            raise DamagedFileError(f"it is cut or no file of this cache ({size} bytes)")
        header = file.read(length)
        if len(header) != length:
            raise DamagedFileError("it is cut")
        table, metadata = _parsed(header)
        if metadata.get("format") != FORMAT:
            raise DamagedFileError("it was not written by this version of the cache")
        if metadata.get("key") != key:
            raise DamagedFileError("it was made for something else")
        places = _places(table, size - 8 - length, 8 + length)
        region = mapped(file, size, retire=retire)
    *tensors, (_, _, last, _) = places
    if _check(begin + header, [region[first:end] for _, _, first, end in tensors]) != region[last:].tobytes():
        raise DamagedFileError("its content does not match its checksum")
    return tuple(
        _tensor(region, dtype, shape, first, end)
        for name, (dtype, shape, first, end) in zip(table, places, strict=True)
        if name.isdecimal()
    )


def _parsed(text: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    with contextlib.suppress(ValueError, RecursionError, MemoryError):
        table = json.loads(text.decode())
        metadata = table.pop("__metadata__", None) if isinstance(table, dict) else None
        if isinstance(metadata, dict) and all(isinstance(entry, dict) for entry in table.values()):
            return table, metadata
    raise DamagedFileError("its header cannot be read")


def _places(table: dict[str, Any], size: int, start: int) -> list[tuple[torch.dtype, list[int], int, int]]:
    """(dtype, shape, first byte, last byte + 1) of every entry.

    They must fill the file without gaps, in the order and with the names that `_layout` gives them, each where it may begin.
    """
    places: list[tuple[torch.dtype, list[int], int, int]] = []
    at = tensors = 0
    for name, entry in table.items():
        dtype, shape = _described(entry)
        padded = name == f"pad.{tensors}"
        end = at + math.prod(shape) * dtype.itemsize
        expected = padded or name == str(tensors) or (name == _CHECK and shape == [_CHECK_BYTES] and dtype is torch.uint8)
        aligned = name == _CHECK or padded or (start + at) % ALIGNMENT == 0
        if not expected or not aligned or entry.get("data_offsets") != [at, end] or end > size:
            raise DamagedFileError(f"its entry {name[:40]!r} does not fit")
        tensors += name == str(tensors)
        places.append((dtype, shape, start + at, start + end))
        at = end
    if at != size or next(reversed(table), "") != _CHECK:
        raise DamagedFileError("it is cut or extended")
    return places


def _described(entry: dict[str, Any]) -> tuple[torch.dtype, list[int]]:
    name, shape = entry.get("dtype"), entry.get("shape")
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None or not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise DamagedFileError("its header describes no tensors")
    if not all(type(extent) is int and 0 <= extent <= _MOST_EXTENT for extent in shape):
        raise DamagedFileError("its header describes no tensors")
    return dtype, shape


def _tensor(region: Region, dtype: torch.dtype, shape: list[int], begin: int, end: int) -> Tensor:
    if begin == end:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(region, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin).view(shape)
