"""Measurements in the user's cache folder, one JSON file for each machine, set of versions and number of threads."""

import contextlib
import hashlib
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import torch

from qcompile.hardware import Platform
from qcompile.targets.native_ops import missing_ops
from qcompile.versions import installed
from qcompile.weights import fingerprint

log = logging.getLogger(__name__)

FORMAT = 2


def key_of(where: Platform) -> dict[str, str]:
    """Everything a measurement depends on."""
    level = str(torch.ops.qcompile.native_isa(-1)) if missing_ops() is None else "none"
    return {
        "format": str(FORMAT),
        "qcompile": installed("qcompile"),
        "library": fingerprint.of_library(),
        "torch": str(torch.__version__),
        "zentorch": where.library("zentorch").version,
        "processor": f"{where.brand}, {fingerprint.of_processor()}",
        "level": level,
        "cores": str(where.cores),
        "threads": str(torch.get_num_threads()),
    }


class Kept:
    """What is known under one key. Cannot be read: measured again. Cannot be written: only this process knows."""

    def __init__(self, folder: Path, key: dict[str, str]) -> None:
        self.key = key
        self.path = folder / f"measured-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json"

    def load(self, part: str) -> Any:
        """One part of what is known ("machine", "tuned"), None if nothing is."""
        return self._content().get(part)

    def _content(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.info("%s cannot be read, so it is measured again: %s", self.path, error)
            return {}
        if not isinstance(content, dict) or content.get("key") != self.key:
            log.info("%s was not measured here, so it is measured again", self.path)
            return {}
        return content

    def save(self, part: str, value: Any) -> None:
        """Replace one part, leave the others; other processes see the old file or the new one."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**self._content(), "key": self.key, part: value}, indent=1)
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as error:
            log.info("measurements are not kept: %s: %s", self.path, error)
            with contextlib.suppress(OSError):
                temporary.unlink()
