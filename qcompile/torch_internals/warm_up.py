"""Has Inductor do its slow preparations while Dynamo traces and our own passes run, for models that are given to us.

It compiles and loads a test library for each vector instruction set, in processes of their own that it waits for: with an empty
cache some seconds, with a full one still most of a second. Then it has the compiler look whether the header of all its kernels is
still the one that it compiled in advance. It keeps the results for the rest of the process.

All of that is waiting. What computes, or opens many files (the key of Inductor's own sources), stays in the main thread: a thread
that asks for Python's lock a thousand times gets it every 5 ms while Dynamo traces.

It begins in qcompile.compile, and for torch.compile(backend="qcompile") with the first graph that goes to Inductor. Nothing is
registered with Dynamo, and nothing begins for graphs of other back ends.
"""

import importlib
import logging
import threading
from itertools import chain

from torch import nn

from qcompile.torch_internals.private import later

_USE = "Inductor prepares itself later"
_instruction_sets = later("torch._inductor.cpu_vec_isa.valid_vec_isa_list", _USE, essential=False)
_code_cache = later("torch._inductor.codecache.CppPythonBindingsCodeCache", _USE, essential=False)

log = logging.getLogger(__name__)
_worker: threading.Thread | None = None


def begin_for(model: nn.Module) -> None:
    """Begin before the first call of a model, if a part of it lies on the processor."""
    if any(tensor.device.type == "cpu" for tensor in chain(model.parameters(), model.buffers())):
        try:
            importlib.import_module("torch._inductor.compile_fx")  # here: two threads that import it at once may meet
            begin()
        except Exception:  # then Inductor does it itself, and says what is wrong
            log.debug("no head start", exc_info=True)


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
    _instruction_sets()()


def _look_at_header() -> None:
    # What comes back would compile this kernel when called, which nobody does.
    kernel = (
        '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel(float* x) { at::vec::Vectorized<float>(0).store(x); }'
    )
    _code_cache().load_pybinding_async(["float*"], kernel)
