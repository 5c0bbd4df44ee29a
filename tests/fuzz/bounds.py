"""How far a rewritten graph's results may be from eager's: error bounds carried through the graph beside its values.

A weight that is read as (code - zero) * scale may differ from the dense one by its rounding, so a product sum(x * w) may be off by
PRODUCT units of sum(|x| * |w|), a unit being 2^-(significant bits) of the coarsest dtype on the way. Each later operation rounds
once more in both computations, and carries the error on. Where the sum itself overflows although weight and x are finite, nothing
is compared: eager's sum in 16 bits may overflow where a better one does not, and sums of whole numbers times a scale of 1e34 where
eager's does not. Where x or the weight is not finite, the same places
of the results must not be finite either.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

# In units: reading the weight is allowed 2.5 of its own size (qcompile.proofs.weight); rounding x, the scale and the sum are one each, in
# both computations.
PRODUCT = 8.0
# A weight whose products round before they are subtracted (q * s - z * s) carries that rounding in its small differences, too.
CANCELLED = 4.0
# Kernels keep codes with an offset or round the product of zero point and scale, which is taken off again: a share of the largest
# weight of an output, in the unit, and in units of the float32 sum. One code of eight bits is two of these.
STORED, STORED_SUM = 1.0, 16.0
ROUNDED = 1.0  # a value that was rounded to whole steps may be off by a step
UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
# The smallest step of a dtype; matrix instructions take what is below 2^-126 for zero, AMX also what comes of a step.
SPACING = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126, torch.float32: 2.0**-126, torch.float64: 2.0**-126}
NARROW = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
SUM = 2.0**-23  # sums are made in float32

PRODUCTS = frozenset(["mm", "addmm", "bmm", "baddbmm", "mv", "linear"])
SHAPES = frozenset(
    [
        "view",
        "reshape",
        "_unsafe_view",
        "permute",
        "t",
        "transpose",
        "unsqueeze",
        "squeeze",
        "expand",
        "clone",
        "alias",
        "detach",
        "slice",
        "select",
        "cat",
        "stack",
        "unbind",
    ]
)
SAME_ERROR = frozenset(["neg", "abs", "relu", "clamp", "clamp_min", "clamp_max", "_to_copy"])


class Bounds:
    """The plain graph of (x, *constants) with these constants: values and errors for one x after another."""

    def __init__(self, gm: fx.GraphModule, constants: Sequence[Tensor], cancelled: bool = False) -> None:
        self.gm, self.cancelled = gm, cancelled
        inputs = list(gm.graph.find_nodes(op="placeholder"))
        self.x, self.fixed = inputs[0], dict(zip(inputs[1:], constants, strict=True))
        self.env: dict[fx.Node, Any] = dict(self.fixed)
        self.errors: dict[fx.Node, Any] = {}
        values = [node.meta.get("val") for node in gm.graph.nodes]
        self.narrows = any(isinstance(value, Tensor) and value.dtype in NARROW for value in values)
        moving = {self.x}
        for node in gm.graph.nodes:
            if any(item in moving for item in node.all_input_nodes):
                moving.add(node)
            elif node.op == "get_attr":
                self.env[node] = getattr(gm, str(node.target))
            elif node.op == "call_function":
                self.env[node] = self._call(node)
        self.moving = [node for node in gm.graph.nodes if node in moving and node.op == "call_function"]
        self.results: tuple[fx.Node, ...] = tuple(next(iter(gm.graph.find_nodes(op="output"))).args[0])
        self.stepped: set[fx.Node] = set()  # what comes from values rounded to whole steps
        self.widest: dict[fx.Node, float] = {}  # of results: a float32 one of a bfloat16 product may come in bfloat16
        self.units = {node: self._coarsest(value) for node, value in self.env.items() if isinstance(value, Tensor)}

    def run(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(value, error) of each result for this x."""
        self.env[self.x], self.errors = x, {self.x: torch.zeros(x.shape, dtype=torch.float64)}
        for node in self.moving:
            self.env[node] = self._call(node)
            self.errors[node] = self._error(node, self.env[node])
        return [(self.env[node], self._error_of(node)) for node in self.results]

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.env.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _error_of(self, node: fx.Node) -> Any:
        if node in self.errors:
            return self.errors[node]
        value = self.env[node]
        return torch.zeros(value.shape, dtype=torch.float64) if isinstance(value, Tensor) else value

    def _error(self, node: fx.Node, value: Any) -> Any:
        if "round" in str(node.target) or any(item in self.stepped for item in node.all_input_nodes):
            self.stepped.add(node)
        packet = getattr(node.target, "overloadpacket", node.target)
        name = packet.__name__  # type: ignore[union-attr]
        if name == "getitem":
            return self.errors[node.args[0]][node.args[1]]  # type: ignore[index]
        if name in SHAPES:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._error_of)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        self.widest[node] = max(UNIT.get(value.dtype, 1.0), *(self.widest.get(item, 0.0) for item in node.all_input_nodes), 0.0)
        own = 2 * self.widest[node] * value.double().abs() + SPACING.get(value.dtype, 0.0)
        error = self._product(node, name) if name in PRODUCTS else self._elementwise(node, name, value)
        # What is not finite counts as exact, so that it is compared; infinity times nothing is as good as unknown.
        return (error + own.nan_to_num(0.0, 0.0, 0.0)).nan_to_num(float("inf"), float("inf"))

    def _both(self, item: Any) -> tuple[Any, Any]:
        """(value, error) of an argument in float64."""
        if not isinstance(item, fx.Node):
            return (float(item), 0.0) if isinstance(item, int | float) else (item, 0.0)
        value = self.env[item]
        return value.double() if isinstance(value, Tensor) else value, self.errors.get(item, 0.0)

    def _elementwise(self, node: fx.Node, name: str, value: Tensor) -> Tensor:
        a, ea = self._both(node.args[0])
        b, eb = self._both(node.args[1]) if len(node.args) > 1 and name in ("mul", "div", "add", "sub") else (0.0, 0.0)
        a, b = (item.nan_to_num(0.0, 0.0, 0.0) if isinstance(item, Tensor) else item for item in (a, b))
        if name == "mul":
            return torch.as_tensor(abs(a) * eb + abs(b) * ea + ea * eb)
        if name == "div":
            return torch.as_tensor((ea + abs(a / b) * eb) / (abs(b) - eb).clamp(min=0) if isinstance(b, Tensor) else ea / abs(b))
        if name in ("add", "sub"):
            factor: Any = node.kwargs.get("alpha", 1)
            return torch.as_tensor(ea + eb * abs(factor))
        if name == "round":
            return torch.as_tensor(ea) + ROUNDED
        if name == "amax":
            return torch.as_tensor(ea).amax(*node.args[1:])  # type: ignore[arg-type]
        if name == "_to_copy" and value.dtype.is_floating_point and isinstance(a, Tensor):  # one may overflow, the other not
            return torch.where(abs(a) + ea >= torch.finfo(value.dtype).max, float("inf"), torch.as_tensor(ea))
        same = name in SAME_ERROR and value.dtype.is_floating_point  # whole numbers jump, and wrap around
        return torch.as_tensor(ea) if same else torch.full(value.shape, float("inf"), dtype=torch.float64)

    def _product(self, node: fx.Node, name: str) -> Tensor:
        operands, added, carried, scale = list(node.args), torch.zeros(()), torch.zeros(()), 1.0
        if name in ("addmm", "baddbmm"):
            beta, scale = (abs(float(node.kwargs.get(key, 1))) for key in ("beta", "alpha"))  # type: ignore[arg-type]
            first, error = self._both(operands.pop(0))
            added, carried = first.abs().nan_to_num(0.0, 0.0, 0.0) * beta, torch.as_tensor(error * beta)
        (a, ea), (b, eb) = (self._both(item) for item in operands[:2])
        bias = (2 * UNIT[self.env[node].dtype] + a.shape[-1] * SUM) * added + carried  # the sum may begin with it
        finite = (a.isfinite().double() @ b.isfinite().double()) == a.shape[-1]
        a, b = a.abs().nan_to_num(0.0, 0.0, 0.0), b.abs().nan_to_num(0.0, 0.0, 0.0)
        unit = max(self.units.get(item, UNIT.get(self.env[item].dtype, 1.0)) for item in node.all_input_nodes)
        error = (PRODUCT * unit + a.shape[-1] * SUM) * (a @ b)
        largest = _largest(a, -1) @ b if operands[0] not in self.errors else a @ _largest(b, -2)
        error = error + (STORED * unit + STORED_SUM * SUM + (CANCELLED * unit if self.cancelled else 0.0)) * largest
        if isinstance(ea, Tensor):
            error = error + ea.nan_to_num(0.0, float("inf"), 0.0) @ b
        if isinstance(eb, Tensor):
            error = error + a @ eb.nan_to_num(0.0, float("inf"), 0.0)
        # Operands, products and partial sums below 2^-126 may each count as zero.
        operands_sum = a.sum(-1, keepdim=b.dim() > 1) + b.sum(-2 if b.dim() > 1 else -1, keepdim=b.dim() > 1)
        tiny = SPACING[torch.float32] * (operands_sum + 2 * a.shape[-1])
        most = torch.finfo(self.env[node].dtype).max
        overflow = finite & (~self.env[node].isfinite() | (self.env[node].double().abs() + error * scale + bias >= most))
        overflow |= finite & (a @ b >= torch.finfo(torch.float32).max)  # in another order, a part of the sum may be too large
        if any(item in self.stepped for item in node.all_input_nodes):
            overflow |= finite & (_most_of_codes(a, b, left=operands[0] in self.errors) >= torch.finfo(torch.float32).max)
        return torch.where(overflow, float("inf"), torch.where(finite, (error + tiny) * scale + bias, 0.0))

    def _coarsest(self, value: Tensor) -> float:
        """The unit of the coarsest dtype whose rounding a constant carries: also what is float32 may have been 16 bits before."""
        if value.dtype in (torch.float32, torch.float64) and self.narrows:
            for narrow in (torch.bfloat16, torch.float16):
                if torch.equal(value.to(narrow).to(value.dtype), value):
                    return UNIT[narrow]
        return UNIT.get(value.dtype, 1.0)


def _largest(item: Tensor, dim: int) -> Tensor:
    return item.amax(dim, keepdim=True).expand(item.shape)


def _most_of_codes(a: Tensor, b: Tensor, *, left: bool) -> Tensor:
    """The largest sum of whole-number codes of x times the weight: kernels multiply by the step of x behind the weight's scale."""
    return (torch.full_like(a, 128.0) @ b) if left else (a @ torch.full_like(b, 128.0))


def compare(pairs: Sequence[tuple[Tensor, Tensor]], ours: Sequence[Tensor], name: Callable[[int], str]) -> str:
    """'' if all of our results are within the errors; otherwise the first that is not."""
    for number, ((want, error), got) in enumerate(zip(pairs, ours, strict=True)):
        if got.shape != want.shape or got.dtype is not want.dtype:
            return f"{name(number)} is {got.dtype} {list(got.shape)} instead of {want.dtype} {list(want.shape)}"
        wrong = outside(want, got, error)
        if bool(wrong.any()):
            at = tuple(int(i) for i in wrong.nonzero()[0])
            numbers = f"is {float(want[at]):.6g}, got {float(got[at]):.6g}, allowed {float(error[at]):.2g}"
            return f"{name(number)}{list(at)} {numbers} ({int(wrong.sum())} of {wrong.numel()})"
    return ""


def outside(want: Tensor, got: Tensor, error: Tensor) -> Tensor:
    """Where `got` is further from `want` than `error`; an infinite error compares nothing."""
    most = torch.finfo(want.dtype).max
    a, b = want.double(), got.double()
    near = torch.where(a.isfinite() & b.isfinite(), (a - b).abs() <= error, a.isfinite() == b.isfinite())
    # Within the error of the largest number, one may be infinite and the other not.
    at_the_edge = ~a.isnan() & ~b.isnan() & (a.abs().nan_to_num(0.0, 0.0) + error >= most) & (b.abs() + error >= most)
    at_the_edge |= ~a.isnan() & ~b.isnan() & (b.abs().nan_to_num(0.0, 0.0) + error >= most) & (a.abs() + error >= most)
    return ~(near | at_the_edge | ~error.isfinite())
