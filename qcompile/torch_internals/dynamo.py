"""What we ask of Dynamo beside `torch.compile`."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from qcompile.torch_internals.private import private

BackendError = private(
    "torch._dynamo.exc.BackendCompilerFailed", "errors of a back end come with Dynamo's own text", essential=False
)
OptimizedModule = private("torch._dynamo.eval_frame.OptimizedModule", "layers have less exact names", essential=False)
_patch = private("torch._dynamo.config.patch", "explain stops at Dynamo's limit of graphs", essential=False)
_innermost = private("torch._dynamo.eval_frame.innermost_fn", "rows of a dead graph stay in the report", essential=False)


def reset() -> None:
    """Throw all compiled code away."""
    torch._dynamo.reset()


def innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """What Dynamo keeps: the function inside wrappers of its own."""
    try:
        return _innermost(function)  # type: ignore[no-any-return]
    except Exception:  # the name is gone: the wrapper then lives as long as anything does
        return function


@contextmanager
def unlimited() -> Generator[None]:
    """Past its limit Dynamo stops asking back ends, silently; every explanation is one more compilation of the same code."""
    try:
        limits = _patch(recompile_limit=1 << 20, accumulated_recompile_limit=1 << 20)
    except Exception:  # other names, or none
        yield
        return
    with limits:
        yield


def unchanged(gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """The graph as torch's default back end compiles it; as it is, if that does not work."""
    try:
        return torch._dynamo.lookup_backend("inductor")(gm, inputs)
    except Exception:
        return gm.forward
