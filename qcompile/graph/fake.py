"""Fake tensors: shapes, strides and dtypes without memory. Which tensors are, the mode they belong to, and new ones in that mode.

From torch 2.14 there are fake tensors made in C++ as well: plain tensors, without a mode of their own. So torch is asked, not the
type, and their mode is that of the compilation.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from qcompile.torch_internals.aot import mode_of_this_compilation
from qcompile.torch_internals.private import private

_FakeTensor = private("torch._subclasses.fake_tensor.FakeTensor", "graphs have no shapes to trace with")
_made_in_cpp = getattr(torch._C, "_is_fake_tensor", lambda _: False)


def is_fake(item: Any) -> bool:
    """Whether this is a fake tensor, and no tensor of another subclass around one."""
    return type(item) is _FakeTensor or (type(item) is Tensor and bool(_made_in_cpp(item)))


def mode_of(items: Iterable[Any]) -> Any:
    """The fake mode that the first fake tensor among these belongs to, None if there is none."""
    for item in items:
        mode = getattr(item, "fake_mode", None)
        if mode is not None:
            return mode
        if is_fake(item):
            return mode_of_this_compilation()
    return None


def within(items: Iterable[Any]) -> AbstractContextManager[Any]:
    """While this is open, tensors are made in the mode that these belong to; as usual if none of them is fake."""
    mode = mode_of(items)
    return nullcontext() if mode is None else mode


def imitation(item: Tensor) -> Tensor:
    """A tensor of these sizes, strides, dtype and device, in the mode that is open."""
    # Not from_tensor: it takes ten times as long, for views, subclasses and symbolic sizes that are not here.
    return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device=item.device)
