"""Other libraries' messages on the process's standard error go to the debug log while we try them out, everything else goes on."""

import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Generator

log = logging.getLogger(__name__)
# As ZenDNN writes them: "[COMMON ][error  ][0.000121]:Null pointer input to matmul_direct".
_THEIRS = re.compile(rb"\[[A-Z_ ]+\]\[\w+ *\]\[[0-9.]+\]")
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def without_their_messages(*, every: bool = False) -> Generator[None]:
    """While this lasts, lines that ZenDNN (every: whoever) writes to file descriptor 2 are logged for debugging; others come later.

    They are written by compiled code, past sys.stderr. Where descriptor 2 is closed or cannot be redirected, nothing changes.
    """
    with _one_at_a_time, contextlib.ExitStack() as undo:
        try:
            caught = undo.enter_context(tempfile.TemporaryFile())
            before = os.dup(2)
            undo.callback(os.close, before)
            _flush()
            os.dup2(caught.fileno(), 2)
        except OSError:
            yield
            return
        try:
            yield
        finally:
            _flush()
            os.dup2(before, 2)
            caught.seek(0)
            _hand_on(caught.read(), every)


def _flush() -> None:
    with contextlib.suppress(Exception):  # a program may have put anything in its place, or nothing
        sys.stderr.flush()


def _hand_on(written: bytes, every: bool) -> None:
    for line in written.splitlines(keepends=True):
        if every or _THEIRS.match(line):
            log.debug("%s", line.decode(errors="replace").rstrip())
        else:
            with contextlib.suppress(OSError):
                os.write(2, line)
