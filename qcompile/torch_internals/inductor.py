"""Inductor as a compiler of our graphs: with our inner compiler, our settings, and without what it does around each call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.torch_internals import warm_up
from qcompile.torch_internals.aot import without_aots_cache
from qcompile.torch_internals.private import later

_USE = "nothing can be compiled with Inductor"
_compile_fx = later("torch._inductor.compile_fx.compile_fx", _USE, takes=["inner_compile", "config_patches", "decompositions"])
_compile_fx_inner = later("torch._inductor.compile_fx.compile_fx_inner", _USE)
_table = later("torch._inductor.decomposition.select_decomp_table", _USE)
_settings_of_mode = later("torch._inductor.list_mode_options", "option mode cannot be read", essential=False)
_cpp_settings = later("torch._inductor.config.cpp", "small loops run on several threads", essential=False)

# Inductor's default for the least number of steps of a thread, and how many steps one thread does as fast as several.
_INDUCTORS_CHUNK, _SMALL_LOOP = 512, 8192
Boxed = Callable[[list[Any]], Sequence[Any]]


def through_inductor(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    mode: str | None,
    inner: Callable[..., Any] | None = None,
    decompositions: Mapping[Any, Any] | None = None,
) -> Callable[..., Any]:
    """Compile with Inductor; `inner` stands in for its inner compiler, and `decompositions` for its table."""
    patches = {**_few_threads_for_small_loops(), **(_settings_of_mode()(mode) if mode is not None else {})}
    compile_fx = _compile_fx()
    if inner is None:
        return compile_fx(gm, list(inputs), config_patches=patches)  # type: ignore[no-any-return]
    if any(isinstance(item, Tensor) and item.device.type == "cpu" for item in inputs):
        warm_up.begin()

    def compile_inner(aten_gm: fx.GraphModule, aten_inputs: Sequence[Any], **kwargs: Any) -> Any:
        return inner(aten_gm, aten_inputs, kwargs)

    with without_aots_cache():  # Inductor's own cache works on the rewritten graph
        return compile_fx(  # type: ignore[no-any-return]
            gm, list(inputs), inner_compile=compile_inner, config_patches=patches, decompositions=decompositions
        )


def inner_compiler(gm: fx.GraphModule, inputs: list[Any], settings: Mapping[str, Any]) -> Any:
    """Inductor's inner compiler, for an ATen graph. settings: what it was called with; it returns a boxed function."""
    warm_up.finish()
    return _compile_fx_inner()(gm, inputs, **settings)


def decomposition_table() -> dict[Any, Any]:
    """Which operators Inductor takes apart before its inner compiler sees the graph."""
    return dict(_table()())


def _few_threads_for_small_loops() -> dict[str, Any]:
    """Settings of Inductor under which a loop of fewer than 8192 steps stays on one thread.

    A step of decoding has hundreds of such loops (norms, rotations, gates of one row). Each barrier between threads costs some
    microseconds, the loop itself one, and a scheduler's tick where the processor is shared. A setting of the user's own is left.
    """
    if getattr(_cpp_settings(), "min_chunk_size", None) != _INDUCTORS_CHUNK:
        return {}
    return {"cpp.min_chunk_size": max(_INDUCTORS_CHUNK, _SMALL_LOOP // max(torch.get_num_threads(), 1))}


def without_bookkeeping(compiled: Boxed, install: Callable[[Boxed], None]) -> Boxed:
    """What to call instead of `compiled` until `install` gets something quicker: after the first call, which Inductor has to see.

    Inductor's bookkeeping takes some 20 microseconds a call: more than the rest of the Python code of a layer's decode step.
    """
    if not hasattr(compiled, "current_callable"):
        return compiled

    def first(args: list[Any]) -> Sequence[Any]:
        results = compiled(args)
        install(getattr(compiled, "current_callable", None) or compiled)
        return results

    return first
