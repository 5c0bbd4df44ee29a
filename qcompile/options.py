"""Options of the back end: one frozen dataclass, read from torch.compile's `options` and the QCOMPILE_* variables."""

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from qcompile.errors import OptionError, UnknownNameError

RESTS = ("inductor", "eager")
FALLBACKS = ("dense", "packed", "error")
VERIFIES = ("structure", "every", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Fields of torch.compile(..., options={...}); each also as an environment variable, QCOMPILE_KERNELS=a,b and so on.

    kernels     only these kernels or targets may be used, in this order ("zentorch", "native.int4"); empty: all, fastest first
    disable     kernels or targets that must not be used
    rest        who compiles the rest of the graph: "inductor" or "eager"
    fallback    what becomes of a weight no kernel takes: "dense" (dequantized once), "packed" (left as it was), "error"
    verify      check kernels by value while compiling: once per "structure", for "every" site, or "off"
    allow_a8    permit int8 activations where the checkpoint does not ask for them
    dump        folder for graphs, decisions and drawings, or None
    platform    compile for another platform (a name that `qcompile platform --list` shows); rewriting only
    release     free the raw weights of the eager module once they are packed
    regional    compile layers that repeat once and call that code for each of them
    cache_dir   folder where packed weights are kept from one process to the next, or None
    measure     choose by what this machine was measured to do (once, kept in the user's cache folder), not by built-in estimates
    tune        measure the kernels for every shape and format that is met (kept likewise), and choose by that
    check       debugging: run the graph after every pass and compare with the one before
    fuel        debugging: rewrite only the first `fuel` sites (bisects a wrong result); None: all
    """

    kernels: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    rest: str = "inductor"
    fallback: str = "dense"
    verify: str = "structure"
    allow_a8: bool = False
    dump: Path | None = None
    platform: str | None = None
    release: bool = False
    regional: bool = True
    cache_dir: Path | None = None
    measure: bool = True
    tune: bool = False
    check: bool = False
    fuel: int | None = None


def resolve(given: Mapping[str, Any] | None = None) -> Options:
    """Options from the environment, overridden by `given`; unknown names and wrong values are errors that list what is known.

    Names of kernels are not looked up here: `targets.registry.settings` does that, too.
    """
    known = {field.name for field in fields(Options)}
    values: dict[str, Any] = {}
    for name in known:
        text = os.environ.get(f"QCOMPILE_{name.upper()}")
        if text is not None and text != "":
            values[name] = PARSERS[name](name, text)
    for name, value in (given or {}).items():
        if name not in known:
            raise UnknownNameError("option", name, known)
        values[name] = PARSERS[name](name, value)
    return replace(Options(), **values)


def user_cache_folder() -> Path:
    """Where measurements are kept: $XDG_CACHE_HOME/qcompile, or ~/.cache/qcompile (XDG Base Directory Specification)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path("~/.cache").expanduser()
    return base / "qcompile"


def _names(option: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise OptionError(option, value, "a list of kernel names, or a text with commas")


def _one_of(choices: tuple[str, ...]) -> Callable[[str, object], str]:
    def parse(option: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise OptionError(option, value, "one of " + ", ".join(repr(choice) for choice in choices))
        return value

    return parse


def _flag(option: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"1", "true", "yes", "on"}:
        return True
    if isinstance(value, str) and value.lower() in {"0", "false", "no", "off"}:
        return False
    raise OptionError(option, value, "True or False")


def _folder(option: str, value: object) -> Path | None:
    if value is None:
        return None
    if isinstance(value, str | Path) and str(value).strip() and "\0" not in str(value):
        with contextlib.suppress(RuntimeError):  # no such user's home
            return Path(value).expanduser()
    raise OptionError(option, value, 'the path of a folder ("." for the working directory), or None')


def _platform(option: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise OptionError(option, value, "the name of a platform or None")


def _count(option: str, value: object) -> int | None:
    if value is None:
        return None
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0 or isinstance(value, bool | float):
        raise OptionError(option, value, "a whole number from 0, or None")
    return number


PARSERS: dict[str, Callable[[str, object], Any]] = {
    "kernels": _names,
    "disable": _names,
    "rest": _one_of(RESTS),
    "fallback": _one_of(FALLBACKS),
    "verify": _one_of(VERIFIES),
    "allow_a8": _flag,
    "dump": _folder,
    "platform": _platform,
    "release": _flag,
    "regional": _flag,
    "cache_dir": _folder,
    "measure": _flag,
    "tune": _flag,
    "check": _flag,
    "fuel": _count,
}
