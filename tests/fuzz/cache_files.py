"""Damaged files of packed weights: each is read right or refused with a DamagedFileError, never read wrong, hung on or crashed with.

Half of the cases damage bytes (flipped, exchanged, cut, zeroed, repeated, moved), a quarter write a header that contradicts itself
or the file, with a digest that is right, and a quarter put something else in the file's place. Through the shelf, too, each of them
costs no more than packing: what it gives is right, and what it leaves is whole.
"""

import json
import logging
import os
import random
import struct
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuzz import Outcome
from qcompile.weights import disk_cache, mapped_file

KEY = "k" * 64
DTYPES = [torch.uint8, torch.int8, torch.int32, torch.bfloat16, torch.float32, torch.int64, torch.bool]
PAGE = 4096


def case(seed: int, folder: Path) -> Outcome:
    """Write a file, damage it, read it directly and through a shelf."""
    chance = random.Random(seed)
    tensors = some_tensors(chance)
    path = folder / "x.safetensors"
    mapped_file.write(path, KEY, tensors, {"note": "n" * chance.randrange(40)})
    path.chmod(0o644)
    name, damage = chance.choice(DAMAGE)
    before = path.read_bytes()
    damage(chance, path)
    harmless = path.is_file() and not path.is_symlink() and meaning(path.read_bytes()) == meaning(before)
    outcome = read_directly(path, tensors, harmless)
    if outcome.kind in ("right", "clear error"):
        outcome = through_shelf(chance, folder / "shelf", tensors, damage) or outcome
    return Outcome(outcome.kind, f"seed {seed}, {name}: {outcome.detail}", 1)


def meaning(content: bytes) -> Any:
    """A file's content, but of a whole one only what its header says, not how: crafted headers may say the same."""
    (length,) = struct.unpack("<Q", content[:8]) if len(content) >= 8 else (0,)
    try:
        table = json.loads(content[8 : 8 + length])
        sums = mapped_file._check(content[: 8 + length], pieces_of(content, table, 8 + length)) == content[-32:]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return content
    return (json.dumps(table), content[8 + length : -32]) if sums else content


def pieces_of(content: bytes, table: dict[str, Any], start: int) -> list[Any]:
    """The stretches that a file's check is computed of."""
    places = [entry["data_offsets"] for name, entry in table.items() if name not in ("__metadata__", "check")]
    return [np.frombuffer(bytearray(content[start + first : start + last]), dtype=np.uint8) for first, last in places]


def some_tensors(chance: random.Random) -> list[Tensor]:
    """A few tensors of any dtype: empty, tiny, odd, larger than a page, or full of one value."""
    generator = torch.Generator().manual_seed(chance.randrange(1 << 30))
    tensors = []
    for _ in range(chance.randrange(1, 5)):
        dtype = chance.choice(DTYPES)
        shape = chance.choice([(), (0, 3), (1,), (7, 3), (33,), (64, 64), (3, 1031), (2, 2, 2049)])
        count = int(np.prod(shape)) * dtype.itemsize
        raw = torch.randint(0, 256 if chance.random() < 0.8 else 1, (max(count, 1),), dtype=torch.uint8, generator=generator)
        raw = raw & 1 if dtype is torch.bool else raw
        tensors.append(raw[:count].clone().view(dtype).view(shape))
    return tensors


def same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether they are equal in shape, dtype and every byte."""
    return len(found) == len(wanted) and all(
        one.shape == other.shape and one.dtype is other.dtype and raw(one) == raw(other)
        for one, other in zip(found, wanted, strict=True)
    )


def raw(tensor: Tensor) -> bytes:
    """The tensor's bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read_directly(path: Path, tensors: Sequence[Tensor], harmless: bool) -> Outcome:
    """The reader's answer."""
    try:
        found = mapped_file.read(path, KEY)
    except mapped_file.DamagedFileError as error:
        return Outcome("silent", f"an undamaged file is refused: {error}") if harmless else Outcome("clear error", str(error))
    except FileNotFoundError as error:
        return Outcome("clear error" if not os.path.lexists(path) else "unclear error", str(error))
    except Exception:
        return Outcome("unclear error", traceback.format_exc(limit=-4))
    if not same(found, tensors):
        return Outcome("wrong", "other tensors were read")
    return Outcome("right") if harmless else Outcome("silent", f"{path.stat().st_size} other bytes were read as if they were these")


def through_shelf(chance: random.Random, folder: Path, tensors: Sequence[Tensor], damage: Callable[..., None]) -> Outcome | None:
    """Fetch, damage the file, fetch twice more: None if the values are right each time, and the second file is mapped."""
    place, leaf = disk_cache.Shelf(folder, "layout"), torch.arange(3, dtype=torch.int8)
    made: list[int] = []

    def make() -> tuple[Tensor, ...]:
        made.append(1)
        return tuple(tensors)

    def fetch() -> tuple[tuple[Tensor, ...], Path | None]:
        return place.fetch("recipe", ["w"], [leaf], make, count=len(tensors), retire=False, keep=True)

    disk_cache.clear()
    with silent("qcompile.weights.disk_cache"):
        return _fetched(fetch, made, tensors, folder, lambda path: damage(chance, path))


@contextmanager
def silent(name: str) -> Generator[None]:
    """No warnings of this logger; its level is what it was afterwards."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _fetched(
    fetch: Callable[[], tuple[tuple[Tensor, ...], Path | None]],
    made: list[int],
    tensors: Sequence[Tensor],
    folder: Path,
    damage: Callable[[Path], None],
) -> Outcome | None:
    _, path = fetch()
    if path is None or len(made) != 1:
        return Outcome("silent", "nothing was written")
    path.chmod(0o644)
    damage(path)
    for _ in range(2):
        values, path = fetch()
        if not same(values, tensors):
            return Outcome("wrong", "the shelf gives other tensors")
    blocked = any(entry.is_dir() for entry in folder.iterdir())  # a folder of the file's name stays
    if len(made) > 2 and not blocked:
        return Outcome("silent", "the file was not replaced")
    left = [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]
    return Outcome("silent", f"left behind: {left}") if left else None


def flip(chance: random.Random, path: Path) -> None:
    """One to eight bits, anywhere."""
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 2, 8])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def exchange(chance: random.Random, path: Path) -> None:
    """Two stretches of one size change places."""
    content = bytearray(path.read_bytes())
    size = chance.choice([1, 2, 4, 8, 64, 512, 1024, PAGE])
    if len(content) >= 2 * size:
        one, two = (chance.randrange(len(content) // size) * size for _ in range(2))
        content[one : one + size], content[two : two + size] = content[two : two + size], content[one : one + size]
    path.write_bytes(content)


def cut(chance: random.Random, path: Path) -> None:
    """The end is missing, or the beginning."""
    content = path.read_bytes()
    at = chance.choice([0, 1, 7, 8, 9, PAGE - 1, PAGE, len(content) - 32, len(content) - 1, chance.randrange(len(content))])
    path.write_bytes(content[:at] if chance.random() < 0.7 else content[at:])


def extend(chance: random.Random, path: Path) -> None:
    """More than there should be, at the end or in between."""
    content = path.read_bytes()
    at = chance.choice([len(content), chance.randrange(len(content) + 1)])
    more = chance.choice([b"\0", bytes(64), bytes(PAGE), content[:PAGE], content, os.urandom(chance.randrange(1, 100))])
    path.write_bytes(content[:at] + more + content[at:])


def fill(chance: random.Random, path: Path) -> None:
    """A stretch of zeros, of ones, of noise or of what stands before it."""
    content = bytearray(path.read_bytes())
    size = min(chance.choice([1, 8, 64, 512, PAGE]), len(content))
    at = chance.randrange(len(content) - size + 1)
    content[at : at + size] = chance.choice([bytes(size), b"\xff" * size, chance.randbytes(size), bytes(content[:size])])
    path.write_bytes(content)


def of_another(chance: random.Random, path: Path) -> None:
    """A file in order of another key, another version or other tensors, or its header before this one's tensors."""
    content, key = path.read_bytes(), path.stem if len(path.stem) == 64 else KEY
    other = path.with_name("other.safetensors")
    kind = chance.randrange(3)
    mapped_file.write(other, key if kind else "another", [torch.arange(chance.randrange(1, 300))], {})
    theirs = other.read_bytes()
    other.unlink()
    path.write_bytes(theirs if kind == 0 else theirs[:PAGE] + content[PAGE:] if kind == 1 else content[:PAGE] + theirs[PAGE:])


def _empty(_: random.Random, path: Path) -> None:
    path.write_bytes(b"")


def _noise(chance: random.Random, path: Path) -> None:
    path.write_bytes(chance.randbytes(chance.randrange(20_000)))


def _gone(_: random.Random, path: Path) -> None:
    path.unlink()


def in_its_place(make: Callable[[Path], Any]) -> Callable[[random.Random, Path], None]:
    """A damage that puts something else where the file was."""

    def damage(_: random.Random, path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _filled_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").touch()


def _others_may_write(_: random.Random, path: Path) -> None:
    path.chmod(0o666)
    path.write_bytes(path.read_bytes() + b"\0")


def sealed(path: Path, header: bytes, body: bytes, length: int | None = None, pieces: Sequence[bytes] | None = None) -> None:
    """A file of this header and body with the digest that its reader would compute."""
    begin = struct.pack("<Q", len(header) if length is None else length) + header
    parts = [np.frombuffer(bytearray(piece), dtype=np.uint8) for piece in (pieces or [body])]
    path.write_bytes(begin + body + mapped_file._check(begin, parts))


def crafted(chance: random.Random, path: Path) -> None:
    """A header that says something impossible, and a digest that is right for it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    table, body = json.loads(content[8 : 8 + length]), content[8 + length : -32]
    names = [name for name in table if name != "__metadata__"]
    pieces = [body[slice(*table[name]["data_offsets"])] for name in names if name != "check"]
    filled = [name for name in names if len(set(table[name]["data_offsets"])) == 2]  # no bytes fit any shape with a 0
    _spoil(chance, table, chance.choice(filled), body)
    header = json.dumps(table).encode()
    sealed(path, header + b" " * (-(8 + len(header)) % PAGE), body, pieces=pieces)


HUGE: list[Any] = [-1, 1 << 31, 1 << 62, 1 << 64, 10**400, 0.5, True, None, "7", [], {}, float("nan")]


def _spoil(chance: random.Random, table: dict[str, Any], name: str, body: bytes) -> None:
    entry, any_number = table[name], chance.choice(HUGE)
    match chance.randrange(12):
        case 0:
            entry["dtype"] = chance.choice(["I4", "F8_E4M3", "", 7, None, ["U8"], {"U8": 1}, "U8" * 1000])
        case 1:
            entry["shape"] = chance.choice([any_number, [any_number], [0, any_number], [1] * 3000, [[1]], "12", None])
        case 2:
            entry["data_offsets"] = chance.choice([[0, any_number], [any_number, 0], any_number, [0], [0, 0, 0], None])
        case 3:
            first, last = entry["data_offsets"]
            by = chance.choice([-64, -1, 1, 64, len(body), -len(body) - 64])
            entry["data_offsets"] = [first + by, last + by]
        case 4:
            del table[name]
        case 5:
            del entry[chance.choice(["dtype", "shape", "data_offsets"])]
        case 6:
            table["9" if name != "9" else "check2"] = dict(entry)
        case 7:
            table[name] = chance.choice([None, 3, [], "x", [entry]])
        case 8:
            table["__metadata__"] = chance.choice([None, 3, [], {}, {"format": {}, "key": []}, {"format": any_number}])
        case 9:
            table["__metadata__"]["key"] = chance.choice(["", None, 5, ["k"], "k"])
        case 10:
            table[chance.choice(["pad.0", "-1", "00", "0x0", "²", "check"])] = table.pop(name)
        case _:
            entry["shape"] = [0, 1 << 70] if chance.random() < 0.5 else [*entry["shape"], 0]


def bomb(chance: random.Random, path: Path) -> None:
    """Headers that are no table, nest without end, or say they are longer than they are; with a digest that is right."""
    header = chance.choice(
        [
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b"[]",
            b"3",
            b"null",
            b'{"__metadata__":' + b"9" * 10_000 + b"}",
            b'{"a":1,"a":2}',
            b"\xff\xfe{\x00}\x00",
            b'{"\\ud800":{}}',
            b"{}",
            b'{"__metadata__":{}}',
            b"{" + b" " * 100_000 + b"}",
            b'"' + b"x" * 3_000_000 + b'"',
        ]
    )
    length = chance.choice([None, None, 0, 1, 2, len(header) - 1, len(header) + 1, 1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
    sealed(path, header, chance.randbytes(chance.choice([0, 32, 64, 5000])), length)


DAMAGE: list[tuple[str, Callable[[random.Random, Path], None]]] = [
    *[(function.__name__, function) for function in (flip, exchange, cut, extend, fill, of_another)] * 4,
    *[("crafted", crafted)] * 9,
    *[("bomb", bomb)] * 3,
    *[(function.__name__.strip("_"), function) for function in (_empty, _noise, _gone, _others_may_write)],
    ("a pipe", in_its_place(os.mkfifo)),
    ("a folder", in_its_place(Path.mkdir)),
    ("a folder with something in it", in_its_place(_filled_folder)),
    ("a link to itself", in_its_place(lambda path: path.symlink_to(path))),
    ("a link to nothing", in_its_place(lambda path: path.symlink_to("nowhere"))),
    ("a link to a device", in_its_place(lambda path: path.symlink_to("/dev/zero"))),
]
