"""Option cache_dir: packed weights on disk, found again by the content they were made from and by everything that made them.

What is trusted. A file's name and key are the SHA-256 of: the raw tensors' digests, dtypes, shapes and strides; the recipe's
canonical text (every operator with its arguments); all source files of this package and its compiled library; the versions of
torch and, where it decides the order of the bytes, of the kernel's library and the processor. Equal keys are the same function
of the same bytes run by the same code, so what stands in the file is what packing would give. Against damage every byte has a part
in a digest that is compared when the file is mapped. Folder and files must be of this user or of root, and nobody else may write to
them (qcompile.weights.cache_folder); who may could put wrong results there, or change a file while it is mapped.

What is not stored: results of checks by value. They run as without a cache, on weights that came from disk; a kernel that then
fails has its file removed, and is judged again by what it packs itself. A file is written only if the raw weight has the same
fingerprint after packing as before. Nothing here raises: what cannot be read is packed, what cannot be written is said once.
What processes left that were killed while they wrote is removed when the folder is first used.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qcompile import debug
from qcompile.kernel import Kernel
from qcompile.options import Options
from qcompile.versions import installed
from qcompile.weights import fingerprint, mapped_file
from qcompile.weights.cache_folder import distrust, remove_abandoned

log = logging.getLogger(__name__)
_unwritable: set[Path] = set()
_tidy: set[Path] = set()
_distrusted: set[Path] = set()

Values = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where results of one kernel's packing are kept. layout: what their bytes depend on besides recipe and code."""

    folder: Path
    layout: str

    @staticmethod
    def of(kernel: Kernel | None, options: Options) -> "Shelf | None":
        """None without option cache_dir, on a simulated platform, and for kernels whose packed form only this process can read."""
        if options.cache_dir is None or options.platform is not None or kernel is None or kernel.layout is None:
            return None
        try:
            return Shelf(options.cache_dir, kernel.layout())
        except Exception as error:  # another library's version cannot be asked for
            log.warning("%s is not cached on disk: %s: %s", kernel.name, type(error).__name__, error)
            return None

    def fetch(
        self,
        recipe: str,
        paths: Sequence[str],
        leaves: Sequence[Tensor],
        make: Callable[[], Values],
        *,
        count: int,
        retire: bool,
        keep: bool,
    ) -> tuple[Values, Path | None]:
        """(the values, the file that holds them or None): mapped if a whole file is there, otherwise made and, if `keep`, written.

        recipe: its structural key, which gives `count` values; paths: names of the raw weights, for people. Whatever `make` raises
        comes through.
        """
        before = _fingerprints(leaves) if self._usable() else None
        key = None if before is None else self._key(recipe, before)
        if key is None:
            return make(), None
        path = self.folder / f"{key}.safetensors"
        values = _read(path, key, count, retire)
        if values is not None:
            debug.count("mapped")
            return values, path
        values = make()
        if not keep or self.folder in _unwritable or not mapped_file.storable(values) or _fingerprints(leaves) != before:
            return values, None
        return values, path if self._write(path, key, values, paths) else None

    def _usable(self) -> bool:
        """Whether the folder is to be trusted; tidied up once."""
        try:
            reason = distrust(self.folder)
        except OSError as error:
            self._give_up_writing(error)
            return False
        if reason:
            if self.folder not in _distrusted:
                log.warning(
                    "packed weights are not cached: %s is not trusted: %s. They are packed in memory; "
                    "give option cache_dir a folder of this user that nobody else may write to (chmod go-w)",
                    self.folder,
                    reason,
                )
            _distrusted.add(self.folder)
            return False
        if self.folder not in _tidy:
            _tidy.add(self.folder)
            _tidy_up(self.folder)
        return True

    def _key(self, recipe: str, fingerprints: Sequence[str]) -> str | None:
        try:
            code = fingerprint.of_code()
        except Exception as error:  # an installation whose files are not there to be read
            log.debug("no fingerprint of the code: %s: %s", type(error).__name__, error)
            return None
        parts = [mapped_file.FORMAT, code, str(torch.__version__), self.layout, recipe, *fingerprints]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _write(self, path: Path, key: str, values: Values, paths: Sequence[str]) -> bool:
        versions = {"qcompile": installed("qcompile"), "torch": str(torch.__version__)}
        notes = {**versions, "layout": self.layout, "made_from": ", ".join(paths)}
        try:
            mapped_file.write(path, key, values, notes)
        except Exception as error:
            if isinstance(error, IsADirectoryError):  # somebody's folder of that name is in the way of this file alone
                log.warning("%s cannot be written: %s", path, error)
                return False
            self._give_up_writing(error)
            return False
        log.debug("cached %s", path)
        return True

    def _give_up_writing(self, error: Exception) -> None:
        if self.folder not in _unwritable:
            log.warning(
                "packed weights are not cached: %s cannot be written: %s. They are packed again in the next process; "
                "give option cache_dir a folder with room that this user may write to",
                self.folder,
                error,
            )
        _unwritable.add(self.folder)


def _fingerprints(leaves: Sequence[Tensor]) -> list[str] | None:
    try:
        return fingerprint.of_tensors(leaves)
    except Exception as error:  # another device, a tensor subclass, a weight that was released
        log.debug("no fingerprint: %s: %s", type(error).__name__, error)
        return None


def _tidy_up(folder: Path) -> None:
    try:
        if removed := remove_abandoned(folder):
            log.info("removed %d unfinished files from %s", removed, folder)
    except OSError as error:  # no such folder yet
        log.debug("%s cannot be tidied up: %s", folder, error)


def _read(path: Path, key: str, count: int, retire: bool) -> Values | None:
    try:
        values = mapped_file.read(path, key, retire=retire)
        if len(values) != count:
            raise mapped_file.DamagedFileError(f"it holds {len(values)} tensors, not {count}")
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a file can be made to do, it costs no more than packing
        log.warning("the cached weight %s is made again: %s", path, error)
        return None
    log.debug("mapped %s", path)
    return values


def discard(path: Path) -> None:
    """Remove a file whose content turned out to be of no use."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error)


def clear() -> None:
    """Try again with folders that could not be written to, and say again which are not trusted."""
    _unwritable.clear()
    _distrusted.clear()
    _tidy.clear()
