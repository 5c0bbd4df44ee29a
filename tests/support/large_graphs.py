"""ATen graphs traced at sizes that nobody could run, and a watch on how much memory a proof about them takes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qcompile.run import decompositions


def traced(function: Callable[..., Any], *inputs: Tensor, inductor: bool = False) -> fx.Graph:
    """The graph of function(*inputs), where the inputs are meta tensors; taken apart as for `rest="eager"` or for Inductor."""
    mode = FakeTensorMode()
    with mode, torch.no_grad():
        fakes = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in inputs]
        table = decompositions.for_inductor() if inductor else decompositions.for_eager()
        graph: fx.Graph = make_fx(function, tracing_mode="real", decomposition_table=table)(*fakes).graph
        return graph


class MemoryWatch(TorchDispatchMode):
    """Adds up the bytes of every tensor that an operator returns anew; `total` bounds what can have lived at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        given = {item.untyped_storage()._cdata for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)}
        result = func(*args, **(kwargs or {}))
        for item in tree_leaves(result):
            if isinstance(item, Tensor) and item.untyped_storage()._cdata not in given:
                size = item.untyped_storage().nbytes()
                self.total += size
                self.largest = max(self.largest, size)
        return result
