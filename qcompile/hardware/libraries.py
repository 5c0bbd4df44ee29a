"""Optional kernel libraries: imported on the first question, only on machines that could use them, and never with an exception."""

import logging
import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from qcompile import versions
from qcompile.hardware.model import Library, Platform
from qcompile.hardware.quiet import without_their_messages
from qcompile.torch_internals.tensors import has_operators

LIBRARIES = ("zentorch", "vllm", "vllm_xpu_kernels")


def zentorch_hint(torch_version: str) -> str:
    """The installation command for this torch; each release of zentorch is built for one minor release of torch."""
    minor = versions.minor(torch_version)
    if minor in versions.ZENTORCH:
        return f'install the build for torch {minor}: pip install "zentorch=={versions.ZENTORCH[minor]}"'
    known = ", ".join(f"{release} for torch {of}" for of, release in versions.ZENTORCH.items())
    return f"no release of zentorch for torch {minor} is known here ({known})"


def zentorch_release(where: Platform) -> str:
    """The release of zentorch to install beside this torch on this machine; "" where none would run."""
    if where.machine != "x86_64" or sys.platform != "linux" or zentorch_hardware(where):
        return ""
    return versions.ZENTORCH.get(versions.minor(where.torch_version), "")


def zentorch_hardware(where: Platform) -> tuple[str, ...]:
    """Why zentorch must not even be imported on this machine (its library is compiled for AVX-512); empty if it may be."""
    needs = (
        (where.is_amd, f"zentorch needs an AMD Zen processor, this one is {where.vendor or where.machine}"),
        (where.has_avx512, "zentorch needs AVX-512 (F, BW, DQ, VL), which this processor or its operating system does not offer"),
    )
    return tuple(sentence for met, sentence in needs if not met)


def import_quietly(name: str) -> Any:
    """Import a module, then undo what it did to logging; what it writes to standard error goes to the debug log.

    zentorch calls logging.basicConfig(), which would put a handler on the root logger of the user's program. What stays: its
    entry in torch's list of back ends, its Inductor lowerings, and `aot_inductor.custom_ops_to_c_shims` entries (with their
    exclusion from the cache key), all keyed by zentorch's own operators, so no other operator is affected. It writes nothing
    else to Inductor's or Dynamo's configuration, to the environment, to the warning filters or to the thread count.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with warnings.catch_warnings(), without_their_messages(every=True):
            warnings.simplefilter("ignore")  # what matters of them (a build for another torch) shows in the operators' schemas
            return import_module(name)
    finally:
        for handler in [entry for entry in root.handlers if entry not in handlers]:
            root.removeHandler(handler)
        root.setLevel(level)


def load(name: str, importer: Callable[[str], Any], hint: str) -> Library:
    """Import a library and say how that went: absent, broken by an ImportError, broken by an OSError, or present."""
    try:
        module = importer(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return Library(name, "absent", detail=f"{name} is not installed; {hint}")
        return Library(name, "broken", versions.installed(name), f"{name} lacks the module {error.name!r} that it imports; {hint}")
    except ImportError as error:
        return Library(name, "broken", versions.installed(name), f"{name} does not import ({first_line(error)}); {hint}")
    except OSError as error:
        reason = f"{name} was built for another torch, its library does not load ({first_line(error)}); {hint}"
        return Library(name, "broken", versions.installed(name), reason)
    except Exception as error:  # an import runs foreign code: whatever it raises means "not usable", never a crash of ours
        reason = f"{name} raises {type(error).__name__} at import ({first_line(error)}); {hint}"
        return Library(name, "broken", versions.installed(name), reason)
    return Library(name, "present", str(getattr(module, "__version__", "")) or versions.installed(name))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@cache
def find(where: Platform, name: str) -> Library:
    """The state of one library on this machine."""
    finders = {"zentorch": _zentorch, "vllm": _vllm, "vllm_xpu_kernels": _vllm_xpu_kernels}
    if name not in finders:
        return Library(name, "absent", detail=f"qcompile knows no library called {name}")
    return finders[name](where)


def _zentorch(where: Platform) -> Library:
    if reasons := zentorch_hardware(where):
        return Library("zentorch", "ineligible", detail="; ".join(reasons))
    return load("zentorch", import_quietly, zentorch_hint(where.torch_version))


def _vllm(where: Platform) -> Library:
    """vLLM is never imported from here: it takes seconds and sets up a whole engine."""
    if "vllm" in sys.modules and (has_operators("_rocm_C") or has_operators("_C")):
        return Library("vllm", "present", versions.installed("vllm"))
    return Library("vllm", "absent", detail="vLLM's operators are used only if the program itself has imported vLLM")


def _vllm_xpu_kernels(where: Platform) -> Library:
    name, hint = "vllm_xpu_kernels", "pip install vllm-xpu-kernels"
    if not where.gpu("xpu"):
        return Library(name, "ineligible", detail="vllm-xpu-kernels needs an Intel XPU, none was found")
    if not has_operators("_xpu_C"):
        for module in (name, f"{name}._xpu_C"):
            found = load(module, import_quietly, hint)
            if not found.present:
                return Library(name, found.state, found.version, found.detail)
    return Library(name, "present", versions.installed("vllm-xpu-kernels"))
