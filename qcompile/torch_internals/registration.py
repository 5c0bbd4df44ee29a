"""The back end's name in Dynamo's list, also where qcompile was not installed (no entry point) and is only imported."""

from importlib.metadata import EntryPoint
from typing import Any

from qcompile.torch_internals.private import private

_registry = private(
    "torch._dynamo.backends.registry", 'backend="qcompile" works only where the package is installed', essential=False
)

NAME, GROUP, OBJECT = "qcompile", "torch_dynamo_backends", "qcompile.backend:backend"


def register() -> None:
    """Add the same entry that Dynamo makes of an installed package's entry point, if it has none yet.

    Not `register_backend`: Dynamo calls that itself when it loads the entry, which may be what imports us, and a second time is
    an error.
    """
    entries: dict[str, Any] = getattr(_registry, "_BACKENDS", {})
    entries.setdefault(NAME, EntryPoint(NAME, OBJECT, GROUP))
