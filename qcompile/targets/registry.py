"""The kernel table: every row that the targets provide, found by name, and what the user's options have against it."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qcompile.errors import KernelRefusedError, UnknownNameError
from qcompile.hardware import Platform, platform
from qcompile.kernel import OTHER_KERNELS, Kernel, Reasons
from qcompile.options import Options, resolve

# One file each under qcompile/targets; the order is the order of preference where the cost model ties.
TARGETS = ("zentorch", "native", "rdna3", "xpu", "torch", "reference")
# Other distributions bring targets in this entry-point group: a name, and a module with KERNELS.
GROUP = "qcompile.targets"


@cache
def kernels() -> dict[str, Kernel]:
    """Every kernel row by name, in order of preference."""
    rows: dict[str, Kernel] = {}
    sources: list[tuple[str, Callable[[], Any]]] = [
        (target, partial(import_module, f"qcompile.targets.{target}")) for target in TARGETS
    ]
    for point in entry_points(group=GROUP):
        sources.append((point.name, partial(_module_of_another, point)))
    for target, load in sources:
        for row in _rows(target, load):
            rows.setdefault(row.name, row)
    return rows


def _module_of_another(point: EntryPoint) -> Any:
    """What another distribution's entry point names; ValueError if its kernels are called as another target's."""
    module = point.load()
    if point.name in TARGETS or any(row.target != point.name for row in module.KERNELS):
        raise ValueError(f"kernels of {point.value} must be called {point.name}.…, and qcompile's own targets cannot be replaced")
    return module


def _rows(target: str, load: Callable[[], Any]) -> tuple[Kernel, ...]:
    try:
        found: tuple[Kernel, ...] = load().KERNELS
    except Exception as error:  # a target that cannot even be imported is a reason, not a failure of the others
        reason = f"the target cannot be loaded: {type(error).__name__}: {error}"
        return (_broken(f"{target}.unavailable", reason),)
    return found


def _broken(name: str, reason: str) -> Kernel:
    def never(*_: object) -> Any:
        raise KernelRefusedError(name, (reason,))

    return Kernel(name=name, missing=lambda _: (reason,), refuses=lambda _: (), pack=never, call=never, seconds=never)


def table(where: Platform | None = None) -> dict[str, Reasons]:
    """Every kernel's name, with the reasons why it does not run on this (or another) platform; empty: it runs here."""
    here = where if where is not None else platform()
    return {name: row.missing(here) for name, row in kernels().items()}


def find(name: str) -> Kernel:
    """The kernel of that name; UnknownNameError lists the known ones."""
    try:
        return kernels()[name]
    except KeyError:
        raise UnknownNameError("kernel", name, kernels()) from None


def settings(given: Mapping[str, Any] | None = None) -> Options:
    """Options from the environment, overridden by `given`; UnknownNameError also for kernels that are not in the table."""
    options = resolve(given)
    if options.kernels or options.disable:
        known = {*TARGETS, *kernels(), *(row.target for row in kernels().values()), *OTHER_KERNELS.values()}
        for name in (*options.kernels, *options.disable):
            if name not in known:
                raise UnknownNameError("kernel", name, known)
    return options


def against_options(name: str, options: Options) -> Reasons:
    """What the user's options have against a kernel of this name."""
    covering = {name, name.split(".", 1)[0]}
    if not covering.isdisjoint(options.disable):
        return ("disabled by option disable",)
    if options.kernels and covering.isdisjoint(options.kernels):
        return ("not in option kernels",)
    return ()


def selects(names: tuple[str, ...], kernel: Kernel) -> bool:
    """Whether a list of kernel or target names ("zentorch", "zentorch.woq_linear") covers this kernel."""
    return kernel.name in names or kernel.target in names
