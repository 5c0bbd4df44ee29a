"""The back end's name in Dynamo's list, also where qcompile was not installed (no entry point) and is only imported."""

from importlib.metadata import EntryPoint
from typing import Any

from torch._dynamo.backends import registry

NAME, GROUP, OBJECT = "qcompile", "torch_dynamo_backends", "qcompile.backend:backend"


def register() -> None:
    """Add the same entry that Dynamo makes of an installed package's entry point, if it has none yet.

    Not `register_backend`: Dynamo calls that itself when it loads the entry, which may be what imports us, and a second time is
    an error.
    """
    entries: dict[str, Any] = getattr(registry, "_BACKENDS", {})
    entries.setdefault(NAME, EntryPoint(NAME, OBJECT, GROUP))
