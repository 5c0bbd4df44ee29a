"""The folder of option cache_dir: whom it must belong to, what is opened in it, what killed writers leave; every call may fail."""

import errno
import fcntl
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.packed_linears import packed_linear
from support.spellings import N
from torch import Tensor

from qcompile.errors import OptionError
from qcompile.hardware import platform
from qcompile.options import resolve
from qcompile.targets.registry import find
from qcompile.weights import cache_folder, disk_cache, mapped_file
from qcompile.weights.cache import STORE
from qcompile.weights.cache_folder import distrust, open_trusted, remove_abandoned

NATIVE = find("native.int4").missing(platform())
needs_native = pytest.mark.skipif(bool(NATIVE), reason="; ".join(NATIVE) or "-")
X = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
VALUES = [torch.arange(500, dtype=torch.int32)]


def run(folder: Path | None) -> Tensor:
    """As the next process would."""
    torch._dynamo.reset()
    STORE.results.entries.clear()
    torch.manual_seed(3)
    options = {"rest": "eager", "kernels": ["native.int4"], "fallback": "error", "cache_dir": folder}
    with torch.no_grad():
        result: Tensor = torch.compile(packed_linear(N, 64), backend="qcompile", options=options)(X)
    torch._dynamo.reset()
    return result


@pytest.fixture(scope="module")
def want() -> Tensor:
    return run(None)


@pytest.fixture
def other_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests make belongs to a user who is neither this one nor root."""
    stat, fstat = os.stat, os.fstat

    def foreign(found: os.stat_result) -> os.stat_result:
        return os.stat_result([*found[:4], 54321, *found[5:10]])

    monkeypatch.setattr(os, "stat", lambda *args, **kw: foreign(stat(*args, **kw)))
    monkeypatch.setattr(os, "fstat", lambda file: foreign(fstat(file)))


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o2777])
def test_a_folder_that_others_may_write_to_is_not_trusted(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    assert distrust(tmp_path) == f"everybody may write to it (mode {mode:o})"


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777, 0o555])
def test_a_folder_of_ones_own_is_trusted(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    assert distrust(tmp_path) == "" and distrust(tmp_path / "not yet") == ""


def test_a_groups_folder_is_trusted_if_the_group_is_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o775)
    monkeypatch.setattr(cache_folder, "_is_private", lambda group, user: True)
    assert distrust(tmp_path) == ""
    monkeypatch.setattr(cache_folder, "_is_private", lambda group, user: False)
    assert distrust(tmp_path) == "its group may write to it (mode 775)"


@pytest.mark.usefixtures("other_user")
def test_another_users_folder_and_files_are_not_trusted(tmp_path: Path) -> None:
    assert distrust(tmp_path).startswith("it belongs to user 54321, neither to ")
    path = tmp_path / "x.safetensors"
    mapped_file.write(path, "key", VALUES, {})
    with pytest.raises(mapped_file.DamagedFileError, match="belongs to user 54321"):
        mapped_file.read(path, "key")


def test_a_file_that_others_may_change_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    mapped_file.write(path, "key", VALUES, {})
    path.chmod(0o646)
    with pytest.raises(mapped_file.DamagedFileError, match="everybody may write to it"):
        mapped_file.read(path, "key")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path.with_name("s")))  # such names are short
    path.with_name("s").rename(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def _link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _link_to_a_file(path: Path) -> None:
    other = path.with_name("other.safetensors")
    mapped_file.write(other, path.stem, VALUES, {})
    path.symlink_to(other)


ODD = [_pipe, _socket, _folder, _link_to_itself, _link_to_a_device, _link_to_a_file]


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_what_is_no_ordinary_file_is_not_opened(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x.safetensors")
    with pytest.raises(mapped_file.DamagedFileError, match=r"no ordinary file|symbolic link"):
        mapped_file.read(tmp_path / "x.safetensors", "x")


@needs_native
@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_what_is_no_ordinary_file_costs_no_more_than_packing(
    make: Callable[[Path], None], tmp_path: Path, want: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path)
    (path,) = tmp_path.iterdir()
    path.unlink()
    make(path)
    with caplog.at_level(logging.WARNING, "qcompile"):
        assert torch.equal(run(tmp_path), want)
    assert any(str(path) in record.getMessage() and "made again" in record.getMessage() for record in caplog.records)
    assert make is _folder or (path.is_file() and not path.is_symlink() and len(mapped_file.read(path, path.stem)) == 1)


@needs_native
def test_a_folder_that_is_not_trusted_is_left_alone(tmp_path: Path, want: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o777)
    with caplog.at_level(logging.WARNING, "qcompile"):
        assert torch.equal(run(tmp_path), want)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "qcompile.weights.disk_cache"]
    assert "is not trusted: everybody may write to it (mode 777)" in message and "chmod go-w" in message
    assert not list(tmp_path.iterdir())


@needs_native
def test_the_folder_we_make_is_trusted_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run(tmp_path / "above" / "made")
    finally:
        os.umask(before)
    assert distrust(tmp_path / "above" / "made") == "" and len(list((tmp_path / "above" / "made").iterdir())) == 1


WRITER = """
import importlib.util, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("cache_folder", sys.argv[2])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.replacing(Path(sys.argv[1])) as file:
    os.write(file, b"begun")
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_left_is_removed_and_a_live_ones_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "x.safetensors"), cache_folder.__file__]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
    writers[0].send_signal(signal.SIGKILL)
    writers[0].communicate()
    assert len(list(tmp_path.iterdir())) == 2
    assert remove_abandoned(tmp_path) == 1
    (left,) = tmp_path.iterdir()
    assert f".{writers[1].pid}." in left.name
    writers[1].communicate()
    assert writers[1].returncode == 0 and [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@needs_native
def test_the_first_use_of_a_folder_tidies_it_up(tmp_path: Path) -> None:
    (tmp_path / ".0123.safetensors.4711.0a1b2c3d.tmp").write_bytes(b"half of it")
    (tmp_path / ".somebody.elses.tmp").write_bytes(b"stays")
    run(tmp_path)
    run(tmp_path)
    names = [path.name for path in tmp_path.iterdir()]
    assert sorted(name.rpartition(".")[2] for name in names) == ["safetensors", "tmp"] and ".somebody.elses.tmp" in names


def test_without_locks_only_old_files_count_as_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for name, age in (("new", 60), ("old", 3 * 24 * 3600)):
        path = tmp_path / f".{name}.safetensors.1.00000000.tmp"
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
    assert remove_abandoned(tmp_path) == 1 and [path.name[:4] for path in tmp_path.iterdir()] == [".new"]
    mapped_file.write(tmp_path / "x.safetensors", "key", VALUES, {})
    assert torch.equal(mapped_file.read(tmp_path / "x.safetensors", "key")[0], VALUES[0])


def test_a_writer_whose_file_was_removed_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, calls = fcntl.flock, iter(range(9))

    def late(file: int, operation: int) -> None:
        if next(calls) == 0:
            for path in tmp_path.iterdir():
                path.unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    mapped_file.write(tmp_path / "x.safetensors", "key", VALUES, {})
    assert torch.equal(mapped_file.read(tmp_path / "x.safetensors", "key")[0], VALUES[0])


@pytest.mark.parametrize("option", ["cache_dir", "dump"])
@pytest.mark.parametrize("value", ["", "  ", "a\0b", 3, "~no.such.user.here/x"])
def test_a_path_that_names_no_folder_is_an_error(option: str, value: Any) -> None:
    with pytest.raises(
        OptionError, match=rf"option '{option}': expected the path of a folder \(\"\.\" for the working directory\)"
    ):
        resolve({option: value})
    assert resolve({option: "."}) and resolve({option: None})


FAILING: list[tuple[Any, str]] = [
    (os, "open"),
    (os, "fstat"),
    (os, "stat"),
    (os, "writev"),
    (os, "replace"),
    (os, "scandir"),
    (os, "mkdir"),
    (os, "unlink"),
    (mmap, "mmap"),
    (fcntl, "flock"),
]


@pytest.mark.parametrize("full", [True, False], ids=["mapping", "writing"])
@pytest.mark.parametrize(("module", "name"), FAILING, ids=lambda item: item if isinstance(item, str) else "")
def test_every_call_of_the_system_may_fail(
    module: Any, name: str, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For this folder's files, with several errors, at once or later; the values are right, and what stands there later is whole."""
    folder = tmp_path / "cache"
    folder.mkdir()
    if full:
        fetch(folder)
    real, failed = getattr(module, name), 0
    for number in (errno.EIO, errno.EACCES, errno.ENOSPC, errno.EROFS):
        for after in (0, 1, 2):
            calls = 0

            def failing(*args: Any, number: int = number, after: int = after, **kw: Any) -> Any:
                nonlocal calls, failed
                if _concerns(folder, args):
                    calls += 1
                    if calls > after:
                        failed += 1
                        raise OSError(number, os.strerror(number))
                return real(*args, **kw)

            with monkeypatch.context() as patch:
                patch.setattr(module, name, failing)
                fetch(folder)
    assert failed or name in NOT_NEEDED[full]
    assert all(record.levelno >= logging.WARNING and str(folder) in record.getMessage() for record in caplog.records)
    assert fetch(folder) is not None
    for path in folder.glob("*.safetensors"):
        assert len(mapped_file.read(path, path.stem)) == 1
    remove_abandoned(folder)
    assert not list(folder.glob(".*"))


# What is not called when a file is there to be mapped, and when it has to be written (and nothing went wrong before).
NOT_NEEDED = {True: {"writev", "replace", "mkdir", "unlink", "flock"}, False: {"unlink", "mmap"}}


def fetch(folder: Path) -> Path | None:
    """What the next process would get for one weight; the file."""
    disk_cache.clear()
    leaf, values = torch.arange(64, dtype=torch.int8), (torch.arange(3000, dtype=torch.int32),)
    found, path = disk_cache.Shelf(folder, "some layout").fetch(
        "recipe", ["w"], [leaf], lambda: values, count=1, retire=False, keep=True
    )
    assert len(found) == 1 and torch.equal(found[0], values[0])
    return path


@needs_native
@pytest.mark.parametrize(("module", "name"), [(os, "open"), (os, "writev"), (mmap, "mmap")])
def test_a_model_runs_whatever_fails(module: Any, name: str, tmp_path: Path, want: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(module, name)

    def failing(*args: Any, **kw: Any) -> Any:
        if _concerns(tmp_path, args):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing)
        assert torch.equal(run(tmp_path), want)
    assert torch.equal(run(tmp_path), want) and len(list(tmp_path.iterdir())) == 1


def _concerns(folder: Path, args: Any) -> bool:
    """Whether a call is about this folder: by its path, or by a descriptor of a file in it."""
    first = args[0] if args else None
    if isinstance(first, int) and first >= 0:
        try:
            first = os.readlink(f"/proc/self/fd/{first}")
        except OSError:
            return False
    return isinstance(first, str | Path) and str(first).startswith(str(folder))


@needs_native
def test_a_disk_that_takes_nothing_ends_the_write(tmp_path: Path, want: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "writev", lambda file, pieces: 0)
    assert torch.equal(run(tmp_path), want)
    assert not list(tmp_path.iterdir())


def test_a_descriptor_is_never_left_open(tmp_path: Path) -> None:
    for make in ODD:
        make(tmp_path / make.__name__)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in tmp_path.iterdir():
        if "_" in path.name:
            with pytest.raises(OSError, match=r"ordinary|symbolic"):
                open_trusted(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
