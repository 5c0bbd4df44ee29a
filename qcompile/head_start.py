"""Asks Inductor's slow question about the processor while our own passes run.

Inductor compiles and loads a test library for each vector instruction set, in processes of their own that it waits for: with an
empty cache some seconds, with a full one still most of a second. It keeps the answers for the rest of the process.
"""

import logging
import threading

log = logging.getLogger(__name__)
_asking: threading.Thread | None = None


def begin() -> None:
    """Ask in the background, once per process. Inductor must have been imported: two threads that import it at once may meet."""
    global _asking  # noqa: PLW0603 - one question per process
    if _asking is None:
        _asking = threading.Thread(target=_ask, name="qcompile-head-start", daemon=True)
        _asking.start()


def finish() -> None:
    """Wait for the answer; it would be asked a second time otherwise."""
    if _asking is not None:
        _asking.join()


def _ask() -> None:
    try:
        from torch._inductor.cpu_vec_isa import valid_vec_isa_list  # noqa: PLC0415 - Inductor is slow to import

        valid_vec_isa_list()
    except Exception:  # then Inductor asks itself, and says what is wrong
        log.debug("asking for the processor's instruction sets", exc_info=True)
