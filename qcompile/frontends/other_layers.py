"""Quantized layers that are no plain nn.Linear: which of them compute one all the same, and what becomes of the others' weight.

transformers' Conv1D (GPT-2) keeps its weight as [K, N], and models have subclasses of nn.Linear with a forward of their own.
"""

import copy
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.errors import UnsupportedSchemeError
from qcompile.frontends import notes

SHAPE = "qcompile_weight_shape"
_ROWS = 3
_known: dict[type, bool | None] = {}


@dataclass(frozen=True, slots=True)
class Lent:
    """A module that is no linear and poses as one while its tensors are read. shape: of its own weight; turned: that is [K, N]."""

    kind: type[nn.Module]
    shape: tuple[int, ...]
    turned: bool


def transposed(module: nn.Module) -> bool | None:
    """Whether a module computes x @ weight + bias (its weight is [K, N]), or, False, x @ weight.T + bias; None: something else.

    Found out by its own forward on random values, once for each class.
    """
    kind = type(module)
    if isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward:
        return False
    if kind not in _known:
        _known[kind] = _tried(module)
    return _known[kind]


def _tried(module: nn.Module) -> bool | None:
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or any(True for _ in module.children()):
        return None
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    for turned in (False, True):
        k, n = weight.shape if turned else reversed(weight.shape)
        bias = random(n) if module._parameters.get("bias") is not None else None
        values, x = random(*weight.shape), random(_ROWS, k)
        other = copy.copy(module)
        other.__dict__ = dict(module.__dict__)
        other._parameters = {"weight": nn.Parameter(values), "bias": None if bias is None else nn.Parameter(bias)}
        try:
            with torch.no_grad():
                found = [other(x), other(x[None] * 2)[0]]  # of more dimensions, and linear in x
        except Exception:  # whatever a forward needs that is not there
            continue
        matrix = values if turned else values.t()
        expected = [torch.nn.functional.linear(given, matrix.t(), bias) for given in (x, x * 2)]
        if all(_equal(one, two) for one, two in zip(found, expected, strict=True)):
            return turned
    return None


def _equal(found: Any, expected: Tensor) -> bool:
    return (
        isinstance(found, Tensor)
        and found.shape == expected.shape
        and found.dtype == expected.dtype
        and bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())
    )


def become_linear(module: Any) -> bool:
    """Make a module that computes a linear an nn.Linear with a weight [N, K] that has no values yet; whether it is one now."""
    turned = transposed(module)
    if turned is None:
        return False
    if type(module) is nn.Linear:
        return True
    weight = module._parameters["weight"]
    n, k = reversed(weight.shape) if turned else weight.shape
    module.__class__, module.in_features, module.out_features = nn.Linear, k, n
    module.weight = nn.Parameter(torch.empty((n, k), dtype=weight.dtype, device="meta"), requires_grad=False)
    return True


def pose_as_linear(path: str, module: Any, n: int, k: int) -> Lent:
    """Let a module of another kind take the tensors of a Linear [N, K]; UnsupportedSchemeError if its weight has another size."""
    weight = module._parameters.get("weight")
    shape = () if weight is None else tuple(weight.shape)
    flat = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else shape
    if flat not in {(n, k), (k, n)} or (n == k and len(shape) == 2 and not isinstance(module, nn.Linear | nn.Embedding)):
        known = ["layers whose weight is [N, K] or [K, N], and not square"]
        text = f"a quantized {type(module).__name__} with a weight {list(shape)} for codes of N={n}, K={k}"
        raise UnsupportedSchemeError(path, text, known, "Quantize it without this layer.")
    lent = Lent(type(module), shape, turned=flat != (n, k))
    holder: Any = module
    holder.__class__, holder.in_features, holder.out_features = nn.Linear, k, n
    return lent


def give_back(module: Any, lent: Lent, form: str, dtype: torch.dtype) -> None:
    """The module as it was, with the dense weight of what it is now (a front door's linear), and a note."""
    dense = module.weight.detach().to(dtype)
    parts = [*module._parameters, *module._buffers]
    for name in [name for name in parts if name != "bias"]:
        delattr(module, name)
    for name in ("structure", "spec", "used", "in_features", "out_features"):
        module.__dict__.pop(name, None)
    module.__class__ = lent.kind
    if issubclass(lent.kind, nn.Linear):
        module.out_features, module.in_features = lent.shape
    weight = (dense.t() if lent.turned else dense).reshape(lent.shape)
    module.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    n, k = dense.shape
    notes.decline(module, notes.Declined(f"a quantized {lent.kind.__name__}, which is no linear: made dense", form, n, k))


@cache
def loading(kind: Any) -> type[nn.Module]:
    """A subclass without `weight`, for while packed tensors are being read; a model's own initialisation may look at it."""

    def weight(self: nn.Module) -> Tensor:
        found = torch.empty(self.__dict__[SHAPE], dtype=torch.get_default_dtype(), device="meta")
        found._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers then leaves it alone
        return found

    return type(f"Loading{kind.__name__}", (kind,), {"weight": property(weight), "qcompile_plain": kind})


def loaded(module: Any) -> Any:
    """The module with its own class again."""
    module.__class__ = getattr(type(module), "qcompile_plain", type(module))
    module.__dict__.pop(SHAPE, None)
    return module
