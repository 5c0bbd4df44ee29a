"""Fingerprints that stand for content: of tensors, of this installation's code, of the processor; for keys of files on disk."""

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qcompile.platform import platform

_PIECE = 1 << 20


def of_tensors(tensors: Sequence[Tensor]) -> list[str]:
    """One text for each CPU tensor; equal texts mean equal dtype, shape, strides and bytes.

    SHA-256 of the SHA-256 digests of pieces of 1 MiB, so that threads share the work. A fast checksum would not do: a key that
    two contents share would give one of them the other's weights. Of what Python brings along, SHA-256 is both free of known
    collisions and the fastest where the processor has instructions for it (about 1.1 to 2.2 GB/s and core; blake2b half of that).
    """
    views = [_bytes(tensor) for tensor in tensors]
    pieces = [view[start : start + _PIECE] for view in views for start in range(0, len(view), _PIECE)]
    workers = min(torch.get_num_threads(), len(pieces))
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            digests = iter(list(pool.map(_digest, pieces)))
    else:
        digests = iter([_digest(piece) for piece in pieces])
    texts = []
    for tensor, view in zip(tensors, views, strict=True):
        whole = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} {list(tensor.stride())}\n".encode())
        for _ in range(0, len(view), _PIECE):
            whole.update(next(digests))
        texts.append(whole.hexdigest())
    return texts


def _bytes(tensor: Tensor) -> memoryview:
    if tensor.device.type != "cpu":
        raise ValueError(f"only tensors on the CPU have a fingerprint, this one is on {tensor.device}")
    raw: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def _digest(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()


@cache
def of_code() -> str:
    """Of every source file of this package and its compiled library: changes whenever anything changes that could compute."""
    root = Path(__file__).parent
    files = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
    sources = [path for path in files if path.suffix == ".py"]
    sources += _library()
    whole = hashlib.sha256()
    for path in sorted(sources):
        whole.update(hashlib.sha256(path.read_bytes()).digest())
        whole.update(f"{path.relative_to(root) if path.is_relative_to(root) else path.name}\n".encode())
    return whole.hexdigest()


@cache
def of_library() -> str:
    """Of the compiled library; "none" without one."""
    return "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in _library()) or "none"


def _library() -> list[Path]:
    found = importlib.util.find_spec("qcompile._C")
    return [] if found is None or found.origin is None else [Path(found.origin)]


def of_processor() -> str:
    """Vendor, family, model and usable instruction sets, and what torch makes of them."""
    here = platform()
    isa = hashlib.sha256(" ".join(sorted(here.isa)).encode()).hexdigest()[:16]
    return f"{here.machine} {here.vendor} {here.family}.{here.model} {isa} {torch.backends.cpu.get_cpu_capability()}"
