"""Traces a kernel's packing and its call as the passes do: on fake tensors, the call with symbolic leading dimensions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from qcompile.kernel import Kernel, Site
from qcompile.meaning import Operands


def packing_graph(kernel: Kernel, site: Site, operands: Operands) -> fx.GraphModule:
    """`kernel.packed` as an ATen graph of the operands that are there."""
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor) for tensor in operands if tensor is not None]

    def pack(*given: Tensor) -> tuple[Tensor, ...]:
        left = iter(given)
        return kernel.packed(Operands(*(None if tensor is None else next(left) for tensor in operands)), site)  # type: ignore[arg-type]

    return _traced(mode, pack, fakes)


def call_graph(kernel: Kernel, site: Site, packed: Sequence[Tensor]) -> fx.GraphModule:
    """`kernel.run` on x [batch, rows, K] with symbolic batch and rows, as an ATen graph of (x, *packed)."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    sizes: Any = [DimDynamic.DYNAMIC, DimDynamic.DYNAMIC, DimDynamic.STATIC]
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)  # pyright: ignore[reportUnknownVariableType]
    x = mode.from_tensor(torch.randn(3, 5, site.k).to(site.dtype), symbolic_context=context)
    fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in packed]
    return _traced(mode, lambda inputs, *constants: kernel.run(inputs, constants, site), [x, *fakes])


def operators(graph: fx.GraphModule) -> list[str]:
    """The operators called, in order."""
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def _traced(mode: FakeTensorMode, function: Callable[..., Any], fakes: list[Any]) -> fx.GraphModule:
    with mode, torch.no_grad():
        return make_fx(function, tracing_mode="real")(*fakes)
