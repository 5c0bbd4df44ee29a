"""Structured artifacts under TORCH_TRACE, where tlparse shows them."""

from collections.abc import Callable

from qcompile.torch_internals.private import later

_artifact = later("torch._logging._internal.trace_structured_artifact", "the report is not in torch's traces", essential=False)


def emit(text: Callable[[], str]) -> None:
    """Write the report as a structured artifact; free when no trace is asked for."""
    _artifact()("qcompile_report", "json", text)
