"""One function through qcompile's pipeline without Dynamo: captured with make_fx, compiled as the back end does, run, compared."""

import logging
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch._aot_autograd.descriptors import PlainAOTInput
from torch.fx.experimental.proxy_tensor import make_fx

from fuzz.bounds import Bounds, compare
from qcompile.backend import reset
from qcompile.graph.nodes import Constant
from qcompile.options import resolve
from qcompile.reporting.report import report
from qcompile.reporting.rows import SiteReport
from qcompile.run import decompositions
from qcompile.run.compilation import Compilation
from qcompile.run.dump import Dump

OPTIONS: dict[str, Any] = {"rest": "eager", "measure": False}
WINDOWS = 3  # how many parts of the identity are tried
INTERNAL = "compiled unchanged"  # how a row begins that tells of an error of our own


def capture(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The ATen graph of function(x, *constants)."""
    with torch.no_grad():
        gm = make_fx(function, decomposition_table=decompositions.for_eager(), tracing_mode="fake")(*inputs)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


class Trial:
    """A graph, its constants, and what qcompile makes of it. inputs: x, then the constants."""

    def __init__(
        self, gm: fx.GraphModule, inputs: Sequence[Tensor], names: Sequence[str], *, cancelled: bool = False, forget: bool = True
    ) -> None:
        self.inputs, self.names, self.cancelled = list(inputs), list(names), cancelled
        self.plain = fx.GraphModule(gm, _copy(gm.graph))
        mine = fx.GraphModule(gm, _copy(gm.graph))
        for number, node in enumerate(mine.graph.find_nodes(op="placeholder")):
            node.meta["desc"] = PlainAOTInput(number)
        constants = {
            number: Constant(name, tensor) for number, (name, tensor) in enumerate(zip(names, inputs, strict=True)) if number
        }
        if forget:
            reset()
        nothing = fx.GraphModule({}, fx.Graph())
        self.compilation = Compilation(nothing, constants, resolve(OPTIONS), number=0, dump=Dump(None, 0))
        with _quiet():
            self.call = self.compilation.compile(mine, list(inputs), {})

    @property
    def rows(self) -> list[SiteReport]:
        return self.compilation.rows

    def served(self) -> bool:
        return any(row.kernel for row in self.rows)

    def problem(self) -> str:
        """What the report tells of errors of our own."""
        return next((row.declined for row in self.rows if INTERNAL in row.declined), "")

    def ours(self, x: Tensor) -> list[Tensor]:
        with torch.no_grad(), _quiet():
            return list(self.call([x, *self.inputs[1:]]))

    def check(self, samples: Sequence[Tensor], rng: Random) -> str:
        """The first difference from eager on random x and on rows of the identity (which show the weight element by element)."""
        first = samples[0]
        rows, k = first.numel() // first.shape[-1], first.shape[-1]
        eye = torch.eye(k, dtype=first.dtype)
        starts = sorted(rng.sample(range(0, k, rows), min(WINDOWS, len(range(0, k, rows)))))
        named = [("random x", x) for x in samples]
        named += [
            (f"one-hot x, rows from {start}", eye[torch.arange(start, start + rows) % k].reshape(first.shape)) for start in starts
        ]
        with torch.no_grad():
            bounds = Bounds(self.plain, self.inputs[1:], self.cancelled)
            for words, x in named:
                wrong = compare(bounds.run(x), self.ours(x), lambda number: f"result {number}")
                if wrong:
                    return f"{words}: {wrong}"
        return ""


def _copy(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    output = copied.graph_copy(graph, {})
    copied.output(output)
    return copied


@contextmanager
def _quiet() -> Generator[None]:
    """Warnings about changed weights and declined sites are not what is looked for here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Whole(nn.Module):
    """function(x, *constants) as a module that holds the constants: what users compile."""

    def __init__(self, function: Callable[..., Any], constants: Sequence[Tensor], names: Sequence[str]) -> None:
        super().__init__()
        self.function, self.names = function, list(names)
        for name, tensor in zip(names, constants, strict=True):
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *(getattr(self, name) for name in self.names))


class WholeTrial(Trial):
    """As Trial, through torch.compile with all that belongs to it."""

    def __init__(
        self, gm: fx.GraphModule, function: Callable[..., Any], inputs: Sequence[Tensor], names: Sequence[str], *, cancelled: bool
    ) -> None:
        self.inputs, self.names, self.cancelled = list(inputs), list(names), cancelled
        self.plain = fx.GraphModule(gm, _copy(gm.graph))
        torch._dynamo.reset()
        self.model = Whole(function, inputs[1:], names[1:]).eval()
        self.compiled = torch.compile(self.model, backend="qcompile", options=OPTIONS)
        self.ours(inputs[0])
        self.found = list(report().sites)

    @property
    def rows(self) -> list[SiteReport]:
        return self.found

    def ours(self, x: Tensor) -> list[Tensor]:
        for name, tensor in zip(self.names[1:], self.inputs[1:], strict=True):
            if getattr(self.model, name) is not tensor:
                setattr(self.model, name, tensor)
        with torch.no_grad(), _quiet():
            return list(self.compiled(x))
