"""The net under a compiled graph: if its code raises in the first calls, and the captured graph does not, that runs instead."""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.errors import FIRST_CALL_WARNING, QCompileError, brief
from qcompile.graph.nodes import is_released

log = logging.getLogger(__name__)

# The first call goes through Inductor's bookkeeping, the second one is the first that does not
# (qcompile.torch_internals.inductor).
_CALLS = 2
# Copies of what the graph writes to may take this many bytes. They live for a call, at a time when compiling has just taken more.
_MOST_BYTES = 256 << 20


class FirstCalls:
    """Calls the code of a graph, and after an exception of it the graph as it was captured, from then on.

    An exception that the captured graph raises as well is the model's own (a wrong input, no memory), and is raised as that graph
    raises it. Errors that qcompile raises on purpose stay errors.

    To run a graph a second time is safe only if the first run left nothing behind. So what the graph writes to (a cache of keys and
    values, a counter) is copied before the first calls and put back after a failure, and so is the state of the CPU's random
    numbers. Without that a cache that is added to would be added to twice. Where it cannot be done, the exception is raised as it
    came: more than 256 MiB are written to, a tensor's shape or storage is changed, or raw weights were released, so that the
    captured graph cannot run any more.

    written      numbers of the graph's inputs that it writes to; None if that is not known, or is more than data
    recompiled   the captured graph, compiled without us for these inputs; it may raise
    tell         hears what went wrong, in a sentence
    """

    def __init__(
        self,
        code: Callable[..., Any],
        captured: fx.GraphModule,
        written: Sequence[int] | None,
        recompiled: Callable[[Sequence[Any]], Callable[..., Any]],
        tell: Callable[[str], None],
    ) -> None:
        self.code, self.captured, self.written = code, captured, written
        self.recompiled, self.tell = recompiled, tell
        self.left = _CALLS
        self.call: Callable[..., Any] = self._watched

    def _watched(self, *args: Any) -> Any:
        kept = self._kept(args)
        try:
            results = self.code(*args)
        except QCompileError:
            raise
        except Exception as error:
            if kept is None or not self._put_back(args, kept):
                raise
            problem = brief(error)
            log.debug("a first call failed", exc_info=True)
        else:
            self.left -= 1
            if self.left <= 0:
                self._settle(self.code)
            return results
        return self._instead(args, problem)

    def _instead(self, args: Sequence[Any], problem: str) -> Any:
        results = self.captured(*args)  # what it raises is no matter of ours
        warnings.warn(FIRST_CALL_WARNING.format(problem=problem), stacklevel=2)
        self.tell(f"its compiled code failed when it was called, so the graph runs unchanged: {problem}")
        captured = self.captured
        try:
            self._settle(self.recompiled(args))
        except Exception:  # slower, with the same numbers
            log.debug("the captured graph runs in the interpreter", exc_info=True)
            self._settle(captured)
        return results

    def _settle(self, call: Callable[..., Any]) -> None:
        """From now on this alone; what was kept for the other case is let go."""
        self.call = call
        nothing = fx.GraphModule(torch.nn.Module(), fx.Graph())
        self.captured, self.recompiled, self.tell = nothing, lambda _: nothing, lambda _: None

    def _kept(self, args: Sequence[Any]) -> tuple[Tensor, list[Tensor]] | None:
        """Random state and copies of what will be written to; None if the graph could not run again."""
        if self.written is None or any(isinstance(item, Tensor) and is_released(item) for item in args):
            return None
        tensors = [args[number] for number in self.written if isinstance(args[number], Tensor)]
        if sum(item.nbytes for item in tensors) > _MOST_BYTES:
            return None
        with torch.no_grad():
            return torch.get_rng_state(), [item.clone() for item in tensors]

    def _put_back(self, args: Sequence[Any], kept: tuple[Tensor, list[Tensor]]) -> bool:
        assert self.written is not None
        state, copies = kept
        tensors = [args[number] for number in self.written if isinstance(args[number], Tensor)]
        try:
            with torch.no_grad():
                for item, copy in zip(tensors, copies, strict=True):
                    item.copy_(copy)
            torch.set_rng_state(state)
        except Exception:
            log.debug("what the graph wrote to could not be put back", exc_info=True)
            return False
        return True
