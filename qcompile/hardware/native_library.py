"""Loads the compiled operator library (qcompile/_C.so); without it, says why as a reason instead of raising."""

from functools import cache
from importlib.util import find_spec

import torch

BUILD_VERSION = 1


@cache
def missing() -> str | None:
    """None when the operator library is loaded; otherwise one sentence that says why it is not."""
    # find_spec, not a path beside this file: an editable install keeps the library elsewhere.
    spec = find_spec("qcompile._C")
    if spec is None or spec.origin is None:
        return "qcompile was built without its C++ kernels (QCOMPILE_NO_KERNELS, or a source folder that was not installed)"
    try:
        torch.ops.load_library(spec.origin)
        built = int(torch.ops.qcompile._build_version())
    except (OSError, RuntimeError, AttributeError) as error:
        first = str(error).splitlines()[0]
        return f"qcompile's C++ kernels do not load with torch {torch.__version__}: {first}"
    if built != BUILD_VERSION:
        return f"qcompile's C++ kernels are of build {built}, this Python code wants {BUILD_VERSION}: install qcompile again"
    return None


@cache
def wrong_level() -> str | None:
    """Why the loaded library's CPU kernels cannot run: QCOMPILE_ISA names a level that is not there; None if they can."""
    try:
        torch.ops.qcompile.native_isa(-1)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None
