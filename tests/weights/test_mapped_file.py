"""Files of packed weights: safetensors that other readers accept, aligned, whole or not there; fingerprints tell contents apart."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qcompile.weights import fingerprint, mapped_file

TENSORS = [
    torch.arange(5, dtype=torch.uint8),
    torch.randn(3, 7, dtype=torch.float64),
    torch.randn(2, 2, 33).to(torch.bfloat16),
    torch.empty(0, 4, dtype=torch.int64),
    torch.tensor(2.5),
    torch.randint(-128, 128, (100_003,), dtype=torch.int8),
    torch.tensor([True, False]),
]


def test_tensors_come_back_aligned_and_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "x.safetensors"
    mapped_file.write(path, "key", TENSORS, {"note": "n"})
    read = mapped_file.read(path, "key")
    for before, after in zip(TENSORS, read, strict=True):
        assert after.dtype is before.dtype and after.shape == before.shape and torch.equal(before, after)
        assert after.numel() == 0 or after.data_ptr() % 64 == 0
    assert os.stat(path).st_mode & 0o222 == 0
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    mapped_file.write(path, "key", TENSORS, {})
    theirs = load_file(path)
    assert all(torch.equal(theirs[str(index)], tensor) for index, tensor in enumerate(TENSORS))


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    mapped_file.write(path, "key", TENSORS, {})
    mapped_file.read(path, "key")[0].fill_(9)
    assert torch.equal(mapped_file.read(path, "key")[0], TENSORS[0])


def test_a_system_that_writes_less_than_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, writev = tmp_path / "x.safetensors", os.writev
    monkeypatch.setattr(os, "writev", lambda file, pieces: writev(file, [bytes(pieces[0])[:1000], *pieces[1:]][:1]))
    mapped_file.write(path, "key", TENSORS, {})
    assert all(torch.equal(a, b) for a, b in zip(mapped_file.read(path, "key"), TENSORS, strict=True))


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    mapped_file.write(path, "key", TENSORS[:3], {})
    content = path.read_bytes()
    path.chmod(0o600)
    for place in [*range(0, 4096, 7), *range(4096, len(content))]:
        damaged = bytearray(content)
        damaged[place] ^= 0x04
        path.write_bytes(damaged)
        with pytest.raises(mapped_file.DamagedFileError):
            mapped_file.read(path, "key")


@pytest.mark.parametrize("size", [8, 64, 4096])
def test_exchanged_parts_are_noticed(size: int, tmp_path: Path) -> None:
    path, chance = tmp_path / "x.safetensors", random.Random(size)
    tensors = [torch.randint(0, 2**62, (32 * 512,)), torch.randn(7, 3)]
    mapped_file.write(path, "key", tensors, {})
    content = path.read_bytes()
    path.chmod(0o600)
    for _ in range(40):
        one, two = (chance.randrange(len(content) // size) * size for _ in range(2))
        damaged = bytearray(content)
        damaged[one : one + size], damaged[two : two + size] = content[two : two + size], content[one : one + size]
        path.write_bytes(damaged)
        if bytes(damaged) != content:
            with pytest.raises(mapped_file.DamagedFileError):
                mapped_file.read(path, "key")


def test_a_view_is_not_storable_an_opaque_tail_neither() -> None:
    whole = torch.zeros(64, dtype=torch.int8)
    assert mapped_file.storable([whole, whole.clone().view(8, 8)])
    for tensor in (whole[:32], whole.view(8, 8).t(), whole.to(torch.complex64), whole.to("meta"), whole.to_sparse()):
        assert not mapped_file.storable([tensor])


WRITER = """
import sys, torch
from pathlib import Path
from qcompile.weights import mapped_file
for _ in range(60):
    mapped_file.write(Path(sys.argv[1]), "key", [torch.full((200_000,), 7, dtype=torch.int32)], {})
"""


def test_several_processes_write_while_others_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) for _ in range(2)]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            (tensor,) = mapped_file.read(path, "key")
            assert bool((tensor == 7).all())
            reads += 1
    assert reads > 0 and all(writer.returncode == 0 for writer in writers)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def one(tensor: Tensor) -> str:
    (text,) = fingerprint.of_tensors([tensor])
    return text


def test_fingerprints_tell_everything_apart() -> None:
    base = torch.zeros(3 << 20, dtype=torch.int8)
    texts = {
        one(base),
        one(base.view(torch.uint8)),
        one(base.view(3, -1)),
        one(base[:-1]),
        one(torch.empty(0)),
        one(torch.tensor(0.0)),
    }
    assert len(texts) == 6
    for place in (0, (1 << 20) - 1, 1 << 20, (3 << 20) - 1):
        changed = base.clone()
        changed[place] = 1
        texts.add(one(changed))
    assert len(texts) == 10
    square = torch.arange(16.0).view(4, 4)
    assert one(square.t()) != one(square.t().contiguous())
    assert fingerprint.of_tensors([base, square]) == [one(base), one(square.clone())]


def test_without_the_compiled_operators_sha256_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "missing", lambda: "not built")
    assert "sha256" in one(torch.zeros(3))
    test_fingerprints_tell_everything_apart()


def test_only_the_cpus_memory_has_a_fingerprint() -> None:
    with pytest.raises(ValueError, match="meta"):
        fingerprint.of_tensors([torch.zeros(3, device="meta")])
