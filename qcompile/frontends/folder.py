"""What a folder's files hold: config.json, the index and the headers of safetensors files, checked before any tensor is read.

Every error names the file, and where there is one the tensor. Nothing here needs the model.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from qcompile.errors import CONFIG_WAY_OUT, CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
INDEX = "model.safetensors.index.json"
_LENGTH = 8  # bytes of the header's length
_LONGEST = 100_000_000  # what safetensors itself accepts


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file, as the file's header describes it."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


Headers = dict[str, StoredTensor]


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(str(file), "", "a text file that can be read", _words(error)) from error
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(file), "", "JSON", _words(error)) from error
    if not isinstance(found, dict):
        raise CheckpointError(str(file), "", "a JSON object", type(found).__name__)
    return found


def weight_files(folder: Path, variant: str | None = None) -> list[str] | None:
    """The safetensors files that transformers will read in `folder`, checked against the index; None if there are none."""
    single = folder / _with_variant("model.safetensors", variant)
    if single.exists():
        return [str(single)]
    index = folder / _with_variant(INDEX, variant)
    return _indexed(folder, index) if index.exists() else None


def _with_variant(name: str, variant: str | None) -> str:
    head, _, tail = name.partition(".safetensors")
    return f"{head}{'.' + variant if variant else ''}.safetensors{tail}" if not tail else _index_variant(name, variant)


def _index_variant(name: str, variant: str | None) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}.{variant}.{last}" if variant else name


def _indexed(folder: Path, index: Path) -> list[str]:
    found = read_json(index)
    places, known = found.get("weight_map"), "an object: tensor name -> file name"
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(str(index), "weight_map", known, type(places).__name__ if places else "nothing")
    if not isinstance(found.get("metadata"), dict):
        raise CheckpointError(str(index), "metadata", "an object", type(found.get("metadata")).__name__)
    files: dict[str, Headers] = {}
    for tensor, name in places.items():
        path = folder / name
        if name not in files:
            if Path(name).name != name or not path.is_file():
                raise CheckpointError(str(index), f"weight_map[{tensor!r}]", f"a file in {folder}", repr(name))
            files[name] = headers([str(path)])
        if tensor not in files[name]:
            raise CheckpointError(str(path), tensor, f"a tensor of that name, because {index.name} says so", "nothing")
    for name, held in files.items():
        for tensor in held:
            if places.get(tensor) != name:
                got = f"it, though {index.name} " + (f"says {places[tensor]}" if tensor in places else "does not name it")
                raise CheckpointError(str(folder / name), tensor, "only tensors that the index gives to this file", got)
    return [str(folder / name) for name in files]


def headers(files: Iterable[str]) -> Headers:
    """Every tensor of the files by name."""
    found: Headers = {}
    for file in files:
        if not str(file).endswith(".safetensors"):
            raise CheckpointError(str(file), "", "a .safetensors file", "another kind of file")
        for name, tensor in _header(str(file)).items():
            if name in found:
                raise CheckpointError(str(file), name, "a tensor that is stored once", f"another one in {found[name].file}")
            found[name] = tensor
    return found


def _header(file: str) -> Headers:
    try:
        size = os.path.getsize(file)
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH), "little")
            if size < _LENGTH or length > min(size - _LENGTH, _LONGEST):
                raise CheckpointError(file, "header", f"at most {max(size - _LENGTH, 0)} bytes, as the file has", f"{length}")
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(file, "", "a file that can be read", _words(error)) from error
    if len(text) != length:
        raise CheckpointError(file, "header", f"{length} bytes", f"{len(text)}")
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=lambda pairs: _once(file, pairs))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(file, "header", "JSON", _words(error)) from error
    if not isinstance(table, dict):
        raise CheckpointError(file, "header", "a JSON object", type(table).__name__)
    table.pop("__metadata__", None)
    found = {name: _entry(file, name, item, size - _LENGTH - length) for name, item in table.items()}
    _need_whole(file, {name: item["data_offsets"] for name, item in table.items()}, size - _LENGTH - length)
    _need_accepted(file)
    return found


def _once(file: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(file, twice, "a name that stands once in the header", "it twice")
    return found


def _entry(file: str, name: str, item: object, length: int) -> StoredTensor:
    """One entry of the header; `length`: bytes of the file's data."""

    def wrong(field: str, expected: str) -> NoReturn:
        found = item.get(field) if isinstance(item, dict) else item
        raise CheckpointError(file, f"{name}: {field}", expected, str(found)[:80])

    if not isinstance(item, dict):
        wrong("header", "an object")
    code: Any = item.get("dtype")
    shape: Any = item.get("shape")
    offsets: Any = item.get("data_offsets")
    if not isinstance(code, str) or code not in DTYPES:
        wrong("dtype", f"one of {', '.join(DTYPES)}")
    if not _counts(shape):
        wrong("shape", "a list of sizes")
    if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= length:
        wrong("data_offsets", f"two offsets into the {length} bytes of data")
    wanted = math.prod(shape) * DTYPES[code].itemsize
    if offsets[1] - offsets[0] != wanted:
        raise CheckpointError(file, name, f"{wanted} bytes, as {DTYPES[code]} {shape} has", f"{offsets[1] - offsets[0]}")
    return StoredTensor(file, DTYPES[code], tuple(shape))


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)


def _need_whole(file: str, places: dict[str, list[int]], length: int) -> None:
    """Every byte of the data belongs to one tensor."""
    end = 0
    for name, (start, stop) in sorted(places.items(), key=lambda item: item[1]):
        if start != end:
            raise CheckpointError(file, f"{name}: data_offsets", f"data that begins at byte {end}", f"{start}")
        end = stop
    if end != length:
        raise CheckpointError(file, "", f"{end} bytes of data, as its header says", f"{length}")


def _need_accepted(file: str) -> None:
    """Whether safetensors itself opens the file, which is what will read it."""
    from safetensors import safe_open  # noqa: PLC0415 - so that load can say what is missing

    try:
        with safe_open(file, framework="pt"):
            pass
    except Exception as error:  # its own kind, and what the system says
        raise CheckpointError(file, "", "a safetensors file", _words(error)) from error


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def config_entry(folder: Path) -> object:
    """The quantization entry of config.json, or of its text part; None if there is none."""
    file = folder / "config.json"
    found = read_json(file)
    for part in (found, found.get("text_config")):
        if part is None:
            continue
        if not isinstance(part, dict):
            raise CheckpointError(str(file), "text_config", "an object", type(part).__name__, CONFIG_WAY_OUT)
        for name in ("quantization_config", "compression_config"):
            if part.get(name) is not None:
                return part[name]
    return None
