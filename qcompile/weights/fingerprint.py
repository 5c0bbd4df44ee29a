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

from qcompile.hardware import platform
from qcompile.hardware.native_library import missing, wrong_level

_PIECE = 1 << 20


def of_tensors(tensors: Sequence[Tensor]) -> list[str]:
    """One text for each CPU tensor; equal texts mean equal dtype, shape, strides and bytes.

    A fast checksum would not do: a key that two contents share would give one of them the other's weights. So it is BLAKE3 by our
    own operator (about 5 GB/s and core with AVX-512, 3 with AVX2), or without the compiled operators SHA-256 of the SHA-256
    digests of pieces of 1 MiB, which threads share (1 to 2 GB/s and core where the processor has instructions for it).
    """
    return [f"{tensor.dtype} {list(tensor.shape)} {list(tensor.stride())} {digest(_bytes(tensor))}" for tensor in tensors]


def digest(raw: Tensor) -> str:
    """The digest's kind and its 32 bytes in hexadecimal, of a contiguous uint8 tensor of one dimension."""
    if missing() is None and wrong_level() is None:
        found: Tensor = torch.ops.qcompile.native_digest.default(raw)
        return f"blake3 {bytes(found.tolist()).hex()}"
    whole: Any = raw.numpy()
    view = memoryview(whole)
    pieces = [view[start : start + _PIECE] for start in range(0, len(view), _PIECE)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = b"".join(pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces))
    return f"sha256 {hashlib.sha256(digests).hexdigest()}"


def _bytes(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cpu":
        raise ValueError(f"only tensors on the CPU have a fingerprint, this one is on {tensor.device}")
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@cache
def of_code() -> str:
    """Of every source file of this package and its compiled library: changes whenever anything changes that could compute."""
    root = Path(__file__).parent.parent
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
