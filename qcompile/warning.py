"""Warnings that point at the code outside qcompile that led to them."""

import sys
import warnings
from types import FrameType


def warn(text: str) -> None:
    """A UserWarning at the innermost frame that is not qcompile's."""
    level = 1
    frame: FrameType | None = sys._getframe(0)
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "qcompile":
        level += 1
        frame = frame.f_back
    warnings.warn(text, stacklevel=level)
