"""The names of torch's private side that qcompile leans on: looked up here, so that one that is gone is a sentence, not an error.

`private` looks a name up at once, `later` on first use (Inductor is slow to import). What is missing has a stand-in, which raises
when it is called and of which nothing is an instance. `missing` lists what no graph can be rewritten without.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from qcompile.errors import MISSING_INTERNAL, MissingInternalError


@dataclass(frozen=True, slots=True)
class Part:
    """One private name. use: what it is for, as in "without it ..."; takes: arguments that we pass by name.

    essential: without it graphs stay as they are; otherwise only what `use` says is lost.
    """

    path: str
    use: str
    takes: tuple[str, ...] = ()
    essential: bool = True

    @property
    def of_inductor(self) -> bool:
        """Whether asking for it imports Inductor."""
        return self.path.startswith("torch._inductor")

    def objection(self) -> str:
        """One sentence about what this torch lacks of it, "" if it is as expected."""
        found = _found(self.path)
        if found is None:
            return MISSING_INTERNAL.format(version=torch.__version__, what=self.path, use=self.use)
        absent = [name for name in self.takes if not _takes(found, name)]
        if absent:
            what = f"argument {', '.join(absent)} of {self.path}"
            return MISSING_INTERNAL.format(version=torch.__version__, what=what, use=self.use)
        return ""


parts: dict[str, Part] = {}
hidden: set[str] = set()  # tests take names away here


def private(path: str, use: str, *, takes: Iterable[str] = (), essential: bool = True) -> Any:
    """The object of this name, or a stand-in."""
    part = parts[path] = Part(path, use, tuple(takes), essential)
    found = _found(path)
    return _stand_in(part) if found is None or (essential and part.objection()) else found


def later(path: str, use: str, *, takes: Iterable[str] = (), essential: bool = True) -> Callable[[], Any]:
    """A function that returns `private` of these arguments."""
    part = parts[path] = Part(path, use, tuple(takes), essential)
    return lambda: private(part.path, part.use, takes=part.takes, essential=part.essential)


@cache
def missing(*, inductor: bool) -> tuple[str, ...]:
    """What this torch lacks that no graph can be rewritten without; with what Inductor is needed for, which imports it."""
    asked = [part for part in parts.values() if part.essential and (inductor or not part.of_inductor)]
    return tuple(sentence for part in asked if (sentence := part.objection()))


def _found(path: str) -> Any:
    if path in hidden:
        return None
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return getattr(_found(module), name, None) if "." in module else None  # an attribute of a class


def _takes(function: Any, name: str) -> bool:
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in: it says nothing of its arguments
        return True
    return any(item.name == name or item.kind is item.VAR_KEYWORD for item in given)


def _stand_in(part: Part) -> type[Exception]:
    def refuse(*_: object, **__: object) -> None:
        raise MissingInternalError(part.objection() or part.path)

    # Derived from Exception, so that an `except` may name it.
    return type("Missing", (Exception,), {"__new__": refuse})
