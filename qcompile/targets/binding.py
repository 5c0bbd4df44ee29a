"""Operators of other libraries, bound by their live schemas; where one is absent, a stand-in lets a graph still be rewritten."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qcompile.errors import MissingOperatorError
from qcompile.operators import LIBRARY
from qcompile.torch_internals.sizes import statically_known_true
from qcompile.torch_internals.tensors import can_be_traced

Operator = Any  # torch._ops.OpOverload: torch keeps the class, and most of what is asked of it, private and unannotated
_library: Any = torch.library


@dataclass(frozen=True, slots=True)
class Foreign:
    """One operator of another library, called with keyword arguments because its argument order changes between releases.

    arguments: every argument we pass. schema: the stand-in's signature, "(Tensor x, ...) -> Tensor", with the same names.
    fake: the output's shape and dtype for fake tensors, given the same arguments in the order of the schema.
    """

    namespace: str
    name: str
    arguments: tuple[str, ...]
    schema: str
    fake: Callable[..., Tensor]

    @property
    def label(self) -> str:
        return f"{self.namespace}::{self.name}"

    def live(self) -> Operator | None:
        """The registered operator's default overload, or None."""
        packet = getattr(getattr(torch.ops, self.namespace), self.name, None)
        return getattr(packet, "default", None)

    def reasons(self) -> tuple[str, ...]:
        """Why the registered operator cannot be called as we call it; empty if it can."""
        op = self.live()
        if op is None:
            return (f"the operator {self.label} is not registered",)
        return schema_objections(op._schema, self.arguments)

    def __call__(self, /, **values: Any) -> Tensor:
        """Call the operator, or its stand-in if it is not registered."""
        live = self.live()
        op: Any = stand_in(self) if live is None else with_fake(live, self.fake)
        result: Tensor = op(**values)
        return result


def schema_objections(schema: Any, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """What a live schema lacks of the arguments we pass, and what it demands that we do not know."""
    names = [argument.name for argument in schema.arguments]
    lacking = [name for name in wanted if name not in names]
    demanded = [arg.name for arg in schema.arguments if arg.name not in wanted and not arg.has_default_value()]
    objections: list[str] = []
    if lacking:
        objections.append(f"{schema.name} here has no argument {', '.join(lacking)}; its signature is {schema}")
    if demanded:
        objections.append(f"{schema.name} here demands {', '.join(demanded)}, which this version of qcompile does not know")
    return tuple(objections)


@cache
def stand_in(op: Foreign) -> Operator:
    """An operator of our own with the foreign one's signature: it has a fake kernel, and running it says what is missing."""
    name = f"absent_{op.namespace.strip('_')}_{op.name}"
    library: Any = LIBRARY
    library.define(name + op.schema)

    def refuse(*_: object, **__: object) -> Tensor:
        raise MissingOperatorError(op.label)

    library.impl(name, refuse, "CompositeExplicitAutograd")
    _library.register_fake(f"qcompile::{name}", op.fake, lib=LIBRARY)
    return getattr(torch.ops.qcompile, name).default


@cache
def with_fake(op: Operator, fake: Callable[..., Tensor]) -> Operator:
    """The operator, after giving it a fake kernel if its library registered none (torch cannot trace it otherwise)."""
    if not can_be_traced(op):
        _library.register_fake(op, fake)
    return op


def no_rows(x: Tensor) -> bool:
    """Whether x is known to be empty while tracing; adds no guard (a dynamic size is at least 2 by Dynamo's own rule)."""
    return bool(statically_known_true(x.numel() == 0))


def empty_output(x: Tensor, n: int) -> Tensor:
    """The output [..., N] of a linear for an input without rows; many libraries refuse to run one."""
    return x.new_empty((*x.shape[:-1], n))


def marked(y: Tensor, x: Tensor) -> Tensor:
    """y [M, N] with NaN in every row for which x [M, K] holds NaN or infinity, for operators that lose them.

    Times zero, both are NaN and all else is 0; a sum of zeros cannot overflow. (No other way is as quick in bfloat16.)
    """
    return y + (x * 0.0).sum(-1, keepdim=True).to(y.dtype)
