"""A model's ATen graph as the passes see it, runs of single passes on it, and golden texts beside the tests."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
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

ACCEPT = "QCOMPILE_ACCEPT"  # set to 1: tests write the golden texts instead of comparing with them


class _Captured(Exception):  # noqa: N818 - it carries a result
    def __init__(self, state: State) -> None:
        super().__init__("captured")
        self.state = state


def with_state(
    model: Callable[..., Any],
    x: Tensor | Sequence[Any],
    work: Callable[[State], None],
    options: Options | None = None,
    dynamic: bool = False,
) -> State:
    """Capture model(x) as the back end does, and call `work` with the State before the first pass; returns that State.

    `work` runs while the compiler is still in charge, as passes do, so fake values and constants are as in a compilation.
    """
    found: list[State] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        outer = dynamo_constants(gm, example_inputs)

        def inner(aten: fx.GraphModule, inputs: Sequence[Any]) -> Any:
            chosen = options or Options()
            state = State(aten, chosen, platform(chosen.platform), paths=aot_constants(aten.graph, gm, outer))
            state.fuel = chosen.fuel
            with without_modes(), torch.no_grad():
                work(state)
            found.append(state)
            return lambda args: [torch.zeros(())] * 8

        table = decompositions.for_eager()
        compiler = aot_autograd(
            fw_compiler=inner, inference_compiler=inner, decompositions=table, keep_inference_input_mutations=True
        )
        compiler(gm, list(example_inputs))
        raise _Captured(found[0])

    torch._dynamo.reset()
    given = [x] if isinstance(x, Tensor) else list(x)
    try:
        with torch.no_grad():
            torch.compile(model, backend=backend, dynamic=dynamic)(*given)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, _Captured):
            cause = cause.__cause__ or cause.__context__
        if not found:
            raise
    finally:
        torch._dynamo.reset()
    return found[0]


def through(*names: str) -> Callable[[State], None]:
    """Runs the passes up to (and with) the last of these names, in the pipeline's order, checking what each gives."""
    last = max(index for index, step in enumerate(PIPELINE) if step.name in names)
    return lambda state: run(PIPELINE[: last + 1], state)


def before_and_after(
    model: Callable[..., Any], x: Tensor | Sequence[Any], name: str, options: Options | None = None, dynamic: bool = False
) -> str:
    """The graph's text before and after the pass of that name."""
    index = next(index for index, step in enumerate(PIPELINE) if step.name == name)
    texts: list[str] = []

    def work(state: State) -> None:
        run(PIPELINE[:index], state)
        texts.append(to_text(state.graph))
        run(PIPELINE[index : index + 1], state)
        texts.append(to_text(state.graph))

    with_state(model, x, work, options, dynamic)
    return f"before {name}:\n{texts[0]}after {name}:\n{texts[1]}"


def expect(text: str, test_file: str, name: str) -> None:
    """Compare `text` with the golden text `name` in the .expected file beside the test; QCOMPILE_ACCEPT=1 writes it instead."""
    path = Path(test_file).with_suffix(".expected")
    known = _read(path)
    if os.environ.get(ACCEPT) == "1":
        known[name] = text
        path.write_text("".join(f"=== {key}\n{known[key].rstrip()}\n\n" for key in sorted(known)))
        return
    assert name in known, f"no golden text {name!r} in {path.name}; {ACCEPT}=1 writes it"
    assert text.rstrip() == known[name].rstrip(), f"{path.name}, {name!r} differs; {ACCEPT}=1 accepts what is new"


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    parts = re.split(r"(?m)^=== (.*)\n", path.read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))
