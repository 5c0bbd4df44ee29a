"""Calls of Inductor's compiled graphs without what Inductor does around each of them."""

from collections.abc import Callable, Sequence
from typing import Any

Boxed = Callable[[list[Any]], Sequence[Any]]


def without_bookkeeping(compiled: Boxed, install: Callable[[Boxed], None]) -> Boxed:
    """What to call instead of `compiled` until `install` gets something quicker: after the first call, which Inductor has to see.

    Inductor's bookkeeping takes some 20 microseconds a call: more than the rest of the Python code of a layer's decode step.
    """
    if not hasattr(compiled, "current_callable"):
        return compiled

    def first(args: list[Any]) -> Sequence[Any]:
        results = compiled(args)
        install(getattr(compiled, "current_callable", None) or compiled)
        return results

    return first
