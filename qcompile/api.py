"""The front of the house: prepare, compile, load, explain."""

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from qcompile import versions
from qcompile.activations import NO_ACTIVATION_QUANT, ActivationQuant
from qcompile.backend import backend, compile_graph
from qcompile.errors import KernelRefusedError, WeightError
from qcompile.graph.capture import dynamo_constants
from qcompile.hardware import platform
from qcompile.kernel import site_of
from qcompile.meaning import QuantizedWeight
from qcompile.reporting import unseen
from qcompile.reporting.report import Report, gathered
from qcompile.reporting.rows import SiteReport
from qcompile.targets.registry import find, kernels, settings
from qcompile.torch_internals import dynamo, names, recompiles, warm_up

Model = TypeVar("Model", bound=nn.Module)


def prepare(model: Model) -> Model:
    """Make a quantized model's dequantization visible to torch.compile, in place, and return the model.

    Harmless where there is nothing to do, and idempotent. A layer that cannot be served stays right, and the report says why.
    """
    from qcompile.frontends import prepare as front_door  # noqa: PLC0415 - the front doors import transformers' libraries

    versions.warn_about_libraries_of(model)
    prepared = front_door(model)
    names.remember(prepared)
    return prepared


def compile(model: Model, *, dynamic: bool | None = None, mode: str | None = None, **options: Any) -> Model:
    """prepare(model) and torch.compile(model, backend="qcompile"), in place: model(...) and model.generate(...) run compiled.

    options: fields of qcompile.Options (kernels, disable, rest, fallback, verify, allow_a8, dump, platform, release, ...).
    Raises OptionError or UnknownNameError for wrong options, before anything is compiled.
    """
    wanted = settings(options)
    prepare(model)
    unseen.watch(model)
    if wanted.rest == "inductor":
        warm_up.begin_for(model)
    model.compile(backend=backend, dynamic=dynamic, mode=mode, options=options or None, recompile_limit=recompiles.limit())
    return model


def load(path: str | PathLike[str], **kw: Any) -> Any:
    """A transformers model from a compressed-tensors, GPTQ, AWQ or NVFP4 folder, without the quantization libraries' runtimes."""
    with versions.blamed("transformers"):
        from qcompile.frontends.load import load as load_folder  # noqa: PLC0415 - imports transformers

        return load_folder(path, **kw)


def explain(
    model: Callable[..., Any], *args: Any, platform: str | None = None, options: dict[str, Any] | None = None, **kwargs: Any
) -> Report:
    """The report of what would happen for model(*args, **kwargs), here or on another platform; no kernel is compiled or run.

    platform: a name that `qcompile platform --list` shows. The model's code runs on results full of zeros.
    """
    wanted = settings({**(options or {}), **({"platform": platform} if platform is not None else {}), "verify": "off"})
    if isinstance(model, nn.Module):
        prepare(model)
    rows: list[SiteReport] = []
    seen: set[int] = set()

    def explaining(gm: fx.GraphModule, example_inputs: Any, **_: Any) -> Callable[..., Any]:
        seen.update(id(constant.tensor) for constant in dynamo_constants(gm, example_inputs).values())
        return compile_graph(gm, example_inputs, wanted, explained=rows)

    target = model.forward if isinstance(model, nn.Module) else model
    with dynamo.unlimited(), torch.no_grad():
        torch.compile(target, backend=explaining)(*args, **kwargs)
    found = gathered(rows)
    return Report.of([*found, *(unseen.of_model(model, seen, found) if isinstance(model, nn.Module) else ())])


def pack_linear(
    weight: QuantizedWeight,
    kernel: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    bias: Tensor | None = None,
    *,
    activation: ActivationQuant | None = None,
    act_scale: Tensor | None = None,
    act_zero: Tensor | None = None,
    allow_a8: bool = False,
) -> Callable[[Tensor], Tensor]:
    """Pack `weight` for one kernel and return y = f(x), x [..., K] of `dtype` -> y [..., N] of `dtype`.

    kernel: a registered name, or None for the fastest that takes this weight here. activation: how x is rounded first
    (default: not at all; for kernels that only compute with int8 activations: dynamic per token); act_scale, act_zero: the
    constants of a static one. A kernel of our own takes x of every dtype and answers in it; for others f raises WeightError.
    Raises WeightError for contradictory tensors, UnknownNameError for an unknown kernel,
    KernelRefusedError with every reason if it cannot be used.
    """
    weight.check()
    weight = weight.normalized()
    wanted = None if kernel is None else find(kernel)
    if activation is None:
        activation = NO_ACTIVATION_QUANT if wanted is None else wanted.activation or wanted.default_activation
    site = replace(site_of(weight, dtype, bias, activation, act_zero), allow_a8=allow_a8)
    here = platform()
    if wanted is None:
        able = [row for row in kernels().values() if not row.reasons(site, here)]
        if not able:
            raise KernelRefusedError("every kernel", (f"{r.name}: {w}" for r in kernels().values() for w in r.reasons(site, here)))
        wanted = min(able, key=lambda row: row.seconds(site, 1, here))
    elif reasons := wanted.reasons(site, here):
        raise KernelRefusedError(wanted.name, reasons)
    chosen = wanted
    operands = weight.operands._replace(bias=bias, act_scale=act_scale, act_zero=act_zero)
    packed = chosen.packed(operands, site)
    if chosen.retire_addresses:
        from qcompile.weights.memory import retired  # noqa: PLC0415 - only this path needs the arena

        packed = tuple(retired(tensor) for tensor in packed)

    def run(x: Tensor) -> Tensor:
        if x.dtype is not dtype and chosen.target not in ("native", "reference"):  # these pack for every dtype
            raise WeightError("x", f"{dtype}, for which {chosen.name} packed the weight (argument dtype)", str(x.dtype))
        return chosen.run(x, packed, site)

    return run
