"""Has Inductor do its slow preparations while Dynamo traces and our own passes run.

It compiles and loads a test library for each vector instruction set, in processes of their own that it waits for: with an empty
cache some seconds, with a full one still most of a second. Then it has the compiler look whether the header of all its kernels is
still the one that it compiled in advance. It keeps the results for the rest of the process.

All of that is waiting. What computes, or opens many files (the key of Inductor's own sources), stays in the main thread: a thread
that asks for Python's lock a thousand times gets it every 5 ms while Dynamo traces.
"""

import logging
import threading

import torch
from torch._dynamo.callback import CallbackArgs, callback_handler

log = logging.getLogger(__name__)
_worker: threading.Thread | None = None


def begin_with_dynamo() -> None:
    """Begin as soon as Dynamo starts on a first graph, unless an accelerator may be what that graph is for.

    By then Dynamo has imported all of Inductor that is needed: two threads that import it at once may meet.
    """
    callback_handler.register_start_callback(_compilation_starts)


def _compilation_starts(_: CallbackArgs) -> None:
    # It stays registered: Dynamo is walking over its list of callbacks.
    try:
        if _worker is None and not torch.accelerator.is_available():
            begin()
    except Exception:  # a graph that comes to us with tensors of the processor begins then
        log.debug("no head start while Dynamo traces", exc_info=True)


def begin() -> None:
    """Begin in the background, once per process."""
    global _worker  # noqa: PLW0603 - once per process
    if _worker is None:
        _worker = threading.Thread(target=_prepare, name="qcompile-head-start", daemon=True)
        _worker.start()


def finish() -> None:
    """Wait for the results; Inductor would do the same a second time otherwise."""
    if _worker is not None:
        _worker.join()


def _prepare() -> None:
    for prepare in (_ask_for_instruction_sets, _look_at_header):
        try:
            prepare()
        except Exception:  # then Inductor does it itself, and says what is wrong
            log.debug("%s", prepare.__name__, exc_info=True)


def _ask_for_instruction_sets() -> None:
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list  # noqa: PLC0415 - Inductor is slow to import

    valid_vec_isa_list()


def _look_at_header() -> None:
    from torch._inductor.codecache import CppPythonBindingsCodeCache  # noqa: PLC0415 - as above

    # What comes back would compile this kernel when called, which nobody does.
    kernel = (
        '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel(float* x) { at::vec::Vectorized<float>(0).store(x); }'
    )
    CppPythonBindingsCodeCache.load_pybinding_async(["float*"], kernel)
