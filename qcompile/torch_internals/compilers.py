"""The C++ compiler that Inductor needs is missing or fails: told from other errors and said once; the rest then runs eagerly."""

import logging

from qcompile.errors import NO_COMPILER_WARNING
from qcompile.torch_internals.private import later
from qcompile.warning import warn

_compiler = later("torch._inductor.cpp_builder.get_cpp_compiler", "a missing compiler is noticed late", essential=False)

log = logging.getLogger(__name__)
# Classes of torch._inductor.exc; by name, because Inductor hands them on from other processes as text.
_ABSENT, _FAILING = "InvalidCxxCompiler", "CppCompileError"
_state = {"absent": False, "said": False}


def failed(error: BaseException) -> bool:
    """Whether this error, or one that led to it, is that a C++ compiler is missing or fails."""
    return _kind(error) != ""


def absent() -> bool:
    """Whether a graph before this one found no compiler."""
    return _state["absent"]


def give_up(error: BaseException) -> None:
    """Say what is wrong, the first time in this process. Where there is no compiler, later graphs need not try."""
    kind = _kind(error)
    _state["absent"] = kind == _ABSENT
    log.info("the rest of a graph runs eagerly: %s", error)
    if not _state["said"]:
        _state["said"] = True
        problem = "none was found" if kind == _ABSENT else "the one here fails"
        detail = next((line.strip() for line in str(error).splitlines() if _kind_of_text(line) or "C++ compiler" in line), "")
        warn(NO_COMPILER_WARNING.format(problem=problem, detail=f" ({detail[:200]})" if detail else ""))


def look() -> None:
    """Raise Inductor's own error if it finds no compiler."""
    _compiler()()


def try_again() -> None:
    """Look for a compiler again when the next graph comes."""
    _state["absent"] = False


def _kind(error: BaseException | None) -> str:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if found := _kind_of_text(f"{type(error).__name__} {error}"):
            return found
        inner = getattr(error, "inner_exception", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return ""


def _kind_of_text(text: str) -> str:
    return _ABSENT if _ABSENT in text else _FAILING if _FAILING in text else ""
