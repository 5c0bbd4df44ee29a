"""Files in a folder shared by processes: only ordinary ones of trusted owners are opened, new ones appear whole or not at all.

Others may not have written what is trusted: folder and file belong to this user or to root, and nobody else may write to them. A
group that has no other member than this user, by its name and the group file, counts as this user.
"""

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import re
import secrets
import stat
import time
from collections.abc import Generator
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.safetensors\.[0-9]+\.[0-9a-f]{8}\.tmp")  # as `_begun` names them
# Where the system has no locks: nobody writes one file for so long.
_ABANDONED_S = 24 * 3600.0
_TRIES = 3
_FOLDER_MODE = 0o755  # also where the umask would let others write


class UnfitFileError(OSError):
    """What has the file's name is no ordinary file, or others may have written it."""


def distrust(folder: Path) -> str:
    """Why files in this folder are not trusted, "" if they are or there is no such folder; OSError if it cannot be looked at.

    A folder in which everybody may write but only remove what is their own (mode 1777, as /tmp) is fine: files have owners, too.
    """
    try:
        found = folder.stat()
    except FileNotFoundError:
        return ""
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return _others(found, sticky=bool(found.st_mode & stat.S_ISVTX))


def _others(found: os.stat_result, *, sticky: bool = False) -> str:
    mine = os.geteuid()
    if found.st_uid not in (mine, 0):
        return f"it belongs to {_user(found.st_uid)}, neither to {_user(mine)} nor to root"
    if found.st_mode & stat.S_IWOTH and not sticky:
        return f"everybody may write to it (mode {stat.S_IMODE(found.st_mode):o})"
    if found.st_mode & stat.S_IWGRP and not sticky and not _is_private(found.st_gid, mine):
        return f"its group may write to it (mode {stat.S_IMODE(found.st_mode):o})"
    return ""


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _is_private(group: int, user: int) -> bool:
    """Whether this is the group that many systems give each user, with the user's name and nobody else in it."""
    try:
        found, name = grp.getgrgid(group), pwd.getpwuid(user).pw_name
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}


def _open(path: str | Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnfitFileError("it is a symbolic link") from None
        if error.errno == errno.ENXIO:
            raise UnfitFileError("it is no ordinary file") from None  # a socket
        raise


def open_trusted(path: str | Path, _: int = os.O_RDONLY) -> int:
    """A descriptor for reading (an `opener` for open()); UnfitFileError if it is no ordinary file of a trusted owner, OSErrors.

    Neither a pipe, nor a device, nor a link is followed or waited for.
    """
    file = _open(path)
    try:
        found = os.fstat(file)
        wrong = _others(found) if stat.S_ISREG(found.st_mode) else "it is no ordinary file"
        if wrong:
            raise UnfitFileError(wrong)
    except BaseException:
        os.close(file)
        raise
    return file


@contextlib.contextmanager
def replacing(path: Path) -> Generator[int]:
    """A descriptor of a new file that takes this path's place at the end of the block, readable only; nothing is left if it raises.

    It is locked while it is written, so that others can tell it from what a killed process left. It is not forced to the disk: what
    the system loses when it crashes is noticed when the file is read.
    """
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    file, temporary = _begun(path)
    try:
        yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(file)


def _begun(path: Path) -> tuple[int, Path]:
    """A new file beside this one, locked where the system can."""
    for _ in range(_TRIES):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            if _lock(file) is not False and os.fstat(file).st_nlink:
                return file, temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            os.close(file)
            raise
        os.close(file)  # somebody who cleans up was quicker than the lock
    raise OSError(errno.EAGAIN, "others remove the file while it is written", str(path))


def _lock(file: int) -> bool | None:
    """Whether nobody else has the lock, and this descriptor now has it; None on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_abandoned(folder: Path) -> int:
    """Remove what processes left that were killed while they wrote; how many. OSError if the folder cannot be read."""
    removed = 0
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for name in names:
        with contextlib.suppress(OSError):  # others clean up, too
            removed += _remove_if_abandoned(folder / name)
    return removed


def _remove_if_abandoned(path: Path) -> bool:
    file = _open(path)
    try:
        found = os.fstat(file)
        free = _lock(file)
        abandoned = time.time() - found.st_mtime > _ABANDONED_S if free is None else free
        if abandoned and stat.S_ISREG(found.st_mode):
            path.unlink()  # before the lock is given back
            return True
        return False
    finally:
        os.close(file)
