"""What torch says of a tensor, an operator or a mode only in private."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qcompile.torch_internals.private import private

_DISPATCH = "operators of other libraries cannot be told"
OpOverload = private("torch._ops.OpOverload", "the operators of a graph cannot be told")
HigherOrderOperator = private("torch._ops.HigherOrderOperator", "the operators of a graph cannot be told")
without_modes = private("torch.utils._python_dispatch._disable_current_modes", "constants have no values while a graph is traced")
is_traceable_subclass = private(
    "torch.utils._python_dispatch.is_traceable_wrapper_subclass", "the parts of a tensor subclass cannot be found"
)
_all_operators = private("torch._C._dispatch_get_all_op_names", _DISPATCH, essential=False)
_has_kernel = private("torch._C._dispatch_has_kernel_for_dispatch_key", _DISPATCH, essential=False)
autocast_is_on = private("torch._C._is_any_autocast_enabled", "autocast is not seen")

version = operator.attrgetter("_version")  # goes up with each in-place operator


def storage_key(tensor: Tensor) -> int:
    """Tells a tensor's storage from all other living ones: the address of the object, not that of its memory."""
    return storage_address(tensor.untyped_storage())


def storage_address(storage: Any) -> int:
    """The same for a storage."""
    return int(storage._cdata)


def inner_tensors(tensor: Tensor) -> tuple[dict[str, Any], Any]:
    """What a tensor of a subclass consists of, by name, and what it says of itself beside that; ({}, None) of other tensors."""
    if not is_traceable_subclass(tensor):
        return {}, None
    names, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return {name: getattr(tensor, name) for name in names}, context


def parts_of(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a tensor of a subclass consists of, all the way down."""
    for name, inner in inner_tensors(tensor)[0].items():
        if isinstance(inner, Tensor):
            yield name, inner
            yield from ((f"{name}.{part}", item) for part, item in parts_of(inner))


def has_operators(namespace: str) -> bool:
    """Whether any operator of a namespace is registered (the library's extension is loaded)."""
    return any(name.startswith(f"{namespace}::") for name in _all_operators())


def can_be_traced(op: Any) -> bool:
    """Whether the operator has a kernel that tells shapes and dtypes of its results."""
    keys = ("Meta", "CompositeImplicitAutograd", "CompositeExplicitAutograd")
    return any(_has_kernel(op.name(), key) for key in keys)


def check(condition: Any, message: Any) -> None:
    """RuntimeError unless the condition holds; of symbolic sizes it becomes a guard."""
    torch._check(condition, message)
