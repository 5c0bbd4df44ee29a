"""AOTAutograd: as a compiler without Inductor behind it, and what it says around the graph that is being compiled."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from qcompile.torch_internals.private import later, private

_Context = private(
    "torch._guards.TracingContext", "AOTAutograd's wrapper stays, and layers that repeat are compiled each", essential=False
)
_settings = private("torch._functorch.config.patch", "AOTAutograd's cache would answer for our graphs without asking us")
_aot_autograd = later(
    "torch._dynamo.backends.common.aot_autograd", 'rest="eager" cannot be compiled', takes=["fw_compiler", "inference_compiler"]
)
make_fx = private(
    "torch.fx.experimental.proxy_tensor.make_fx", "nothing can be traced", takes=["decomposition_table", "tracing_mode"]
)
_rules_of = later("torch._decomp.get_decompositions", 'rest="eager" cannot be compiled')


def without_aots_cache() -> Any:
    """AOTAutograd's cache would answer for our graphs without asking us; a context manager."""
    return _settings(enable_autograd_cache=False)


def through_aot(
    gm: fx.GraphModule, inputs: Sequence[Any], inner: Callable[..., Any], decompositions: Mapping[Any, Any]
) -> Callable[..., Any]:
    """Compile with AOTAutograd alone; `inner` makes what runs the ATen graph."""

    def compile_inner(aten_gm: fx.GraphModule, aten_inputs: Sequence[Any]) -> Any:
        return inner(aten_gm, aten_inputs, {})

    with without_aots_cache():
        compiler = _aot_autograd()(
            fw_compiler=compile_inner,
            inference_compiler=compile_inner,
            decompositions=decompositions,
            keep_inference_input_mutations=True,
        )
        return compiler(gm, list(inputs))  # type: ignore[no-any-return]


def decompositions_of(operators: Sequence[Any]) -> dict[Any, Any]:
    """Torch's own rules that take these operators apart."""
    return dict(_rules_of()(operators))


def metadata() -> Any:
    """What AOTAutograd found out about the graph that is being compiled (fw_metadata), None where nothing is known."""
    try:
        context = _Context.try_get()
    except AttributeError:
        return None
    return None if context is None else context.fw_metadata


def mode_of_this_compilation() -> Any:
    """The fake mode that this compilation traces with, None if it is not known."""
    try:
        context = _Context.try_get()
    except AttributeError:
        return None
    return None if context is None else context.fake_mode
