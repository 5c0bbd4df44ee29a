"""Tensors in a safetensors file that is mapped, not read: every tensor begins at a multiple of 64 bytes, damage is noticed.

The file is an ordinary one of https://github.com/huggingface/safetensors (8 bytes with the length of a JSON header, the header,
the tensors without gaps). That format promises no alignment, so the header is filled up with blanks to a whole page and tensors
"pad.<n>" fill up to the next 64 bytes; kernels rely on both, and readers of the format accept both.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.memory import Region, mapped

FORMAT = "qcompile packed weights 1"
ALIGNMENT = 64
_PAGE = 4096
_STREAMS = 32
_MOST_PIECES = 512  # of one writev(2); systems take 1024
_MOST_HEADER = 100_000_000  # the format's own limit
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
    metadata = {"format": FORMAT, "key": key, "check": _check(table, chunks), **notes}
    header = json.dumps({"__metadata__": metadata, **table}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % _PAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444), "wb", buffering=0) as file:
            _write_all(file.fileno(), [struct.pack("<Q", len(header)) + header, *chunks])
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write_all(file: int, pieces: Sequence[Any]) -> None:
    """In as few calls as possible: file systems with large pages choose their size by the length of a write."""
    rest = [memoryview(piece) for piece in pieces if len(piece)]
    while rest:
        done = os.writev(file, rest[:_MOST_PIECES])
        while rest and done >= len(rest[0]):
            done -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][done:]


def _layout(tensors: Sequence[Tensor]) -> tuple[dict[str, Any], list[Any]]:
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
    return table, chunks


def _check(table: dict[str, Any], chunks: Sequence[Any]) -> str:
    """Against damage, not against design: 64-bit sums of words that lie far apart, and SHA-256 of the sums and of the table.

    A flipped bit, a page of zeros, or any damaged stretch up to a 32nd of a tensor always changes a sum; and adding is as
    fast as memory.
    """
    whole = hashlib.sha256(json.dumps(table, separators=(",", ":")).encode())
    for chunk in chunks:
        even = len(chunk) // (8 * _STREAMS) * (8 * _STREAMS)
        words = chunk[:even].view(np.uint64).reshape(_STREAMS, -1)
        whole.update(words.sum(0, dtype=np.uint64))
        whole.update(chunk[even:])
    return whole.hexdigest()


def read(path: Path, key: str, *, retire: bool = False) -> tuple[Tensor, ...]:
    """The tensors of a file that `write` made for this key, over the mapped file itself; DamagedFileError says what is wrong.

    The whole content is compared with its check once. retire: at addresses that this process never uses again (qcompile.memory).
    FileNotFoundError and other OSErrors come through.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
        if not 2 <= length <= min(size - 8, _MOST_HEADER):
            raise DamagedFileError(f"it is cut or no safetensors file ({size} bytes)")
        table, metadata = _parsed(file.read(length))
        if metadata.get("format") != FORMAT:
            raise DamagedFileError("it was not written by this version of the cache")
        if metadata.get("key") != key:
            raise DamagedFileError("it was made for something else")
        region = mapped(file, size, retire=retire)
    start = 8 + length
    places = _places(table, size - start, start)
    chunks = [region[begin:end] for _, _, begin, end in places]
    if _check(table, chunks) != metadata.get("check"):
        raise DamagedFileError("its content does not match its checksum")
    return tuple(
        _tensor(region, dtype, shape, begin, end)
        for name, (dtype, shape, begin, end) in zip(table, places, strict=True)
        if not name.startswith("pad.")
    )


def _parsed(text: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        table = json.loads(text)
        metadata = table.pop("__metadata__")
        if isinstance(metadata, dict) and all(isinstance(entry, dict) for entry in table.values()):
            return table, metadata
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise DamagedFileError("its header cannot be read")


def _places(table: dict[str, Any], size: int, start: int) -> list[tuple[torch.dtype, list[int], int, int]]:
    """(dtype, shape, first byte, last byte + 1) of every entry; they must fill the file without gaps, each where it may begin."""
    places: list[tuple[torch.dtype, list[int], int, int]] = []
    at = 0
    for name, entry in table.items():
        dtype, shape, offsets = DTYPES.get(entry.get("dtype")), entry.get("shape"), entry.get("data_offsets")
        whole = isinstance(shape, list) and all(isinstance(extent, int) and extent >= 0 for extent in shape)
        end = at + math.prod(shape) * dtype.itemsize if whole and dtype is not None else -1
        if dtype is None or offsets != [at, end] or end > size or (not name.startswith("pad.") and (start + at) % ALIGNMENT):
            raise DamagedFileError(f"its entry {name!r} does not fit")
        places.append((dtype, shape, start + at, start + end))
        at = end
    if at != size:
        raise DamagedFileError("it is cut or extended")
    return places


def _tensor(region: Region, dtype: torch.dtype, shape: list[int], begin: int, end: int) -> Tensor:
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(region, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin).view(shape)
