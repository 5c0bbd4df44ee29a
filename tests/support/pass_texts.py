"""Runs the pipeline on a small function up to one pass, and gives the graph before and after that pass as text."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd

from qcompile.graph.capture import aot_constants, dynamo_constants
from qcompile.graph.text import to_text
from qcompile.hardware import platform
from qcompile.options import Options
from qcompile.passes import PIPELINE
from qcompile.pipeline import State, run
from qcompile.run import decompositions
from qcompile.torch_internals.tensors import without_modes


def state_after(name: str | None, model: Callable[..., Any], *args: Tensor, **options: Any) -> tuple[State, str, str]:
    """(state, text before, text after) of pass `name` on the graph of model(*args); name None: only captured."""
    found: list[tuple[State, str, str]] = []
    names = [step.name for step in PIPELINE]
    last = 0 if name is None else names.index(name) + 1

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        outer = dynamo_constants(gm, inputs)

        def inner(aten: fx.GraphModule, _: Sequence[Any]) -> Any:
            settings = Options(**options)
            state = State(aten, settings, platform(settings.platform), paths=aot_constants(aten.graph, gm, outer))
            state.fuel = settings.fuel
            with without_modes(), torch.no_grad():
                run(PIPELINE[: max(last - 1, 0)], state)
                before = to_text(state.graph)
                run(PIPELINE[max(last - 1, 0) : last], state)
            found.append((state, before, to_text(state.graph)))
            raise _Stop

        table = decompositions.for_eager()
        compiler = aot_autograd(
            fw_compiler=inner, inference_compiler=inner, decompositions=table, keep_inference_input_mutations=True
        )
        return compiler(gm, list(inputs))

    torch._dynamo.reset()
    try:
        with torch.no_grad():
            torch.compile(model, backend=backend)(*args)
    except Exception:
        if not found:
            raise
    return found[0]


class _Stop(Exception):  # noqa: N818 - no error, only the way out of a compilation that has told enough
    """Ends the compilation when the pass has run."""
