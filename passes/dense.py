"""Afterwards bfloat16 products of one or two rows with a constant dense weight read it at memory speed, in place."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.graph.nodes import aten, is_call, value
from qcompile.graph.walk import evaluate
from qcompile.hardware import platform
from qcompile.kernel import Reasons, unmet
from qcompile.meaning import Verdict, sqnr_db
from qcompile.pipeline import Pass, State
from qcompile.proofs.kernel import ACCEPT_DB
from qcompile.reporting.rows import SiteReport
from qcompile.targets import native_dense
from qcompile.targets.native_dense import FEW_ROWS, NAME, call
from qcompile.targets.registry import against_options
from qcompile.torch_internals import inputs

_MOST_WEIGHTS = 1 << 22  # that a product is tried on
_BLOCK = 256  # a multiple of the outputs that threads are given together (kOutputs of csrc/cpu/binding_dense.cpp)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """y = x @ weight.T + bias: x [M, K] or [..., K], weight [N, K] a constant, bias [N] a constant or None."""

    node: fx.Node
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None


def apply(state: State) -> None:
    """Look at every product with a dense constant; rewrite it, or note why not."""
    proven: dict[Any, Verdict] = {}
    for node in list(state.graph.nodes):
        found = find_dense(state, node)
        if found is None or not node.users:
            continue
        try:
            _look(state, found, proven)
        except Exception as error:  # an odd graph must never stop the user's model
            log.debug("dense product %s", node.name, exc_info=True)
            state.note(_row(state, found), (f"could not be read: {type(error).__name__}: {error}",))


def find_dense(state: State, node: fx.Node) -> Dense | None:
    """The product of a row or more with a dense constant that `node` computes, or None."""
    bias: Any = None
    if is_call(node, aten.linear.default):
        x, weight, *rest = node.args
        bias = rest[0] if rest else None
    elif is_call(node, aten.mm.default):
        x, weight = node.args[0], _turned(node.args[1])
    elif is_call(node, aten.addmm.default) and not node.kwargs:
        bias, x, weight = node.args[0], node.args[1], _turned(node.args[2])
    else:
        return None
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or weight not in state.constants:
        return None
    fake = value(weight)
    if not isinstance(fake, Tensor) or fake.dim() != 2 or fake.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return None
    if bias is not None and (bias not in state.constants or tuple(value(bias).shape) != (fake.shape[0],)):
        return None
    return Dense(node, x, weight, bias)


def _turned(node: Any) -> Any:
    """The [N, K] tensor that `node` [K, N] is a transposed view of."""
    if is_call(node, aten.permute.default) and list(node.args[1]) == [1, 0]:
        return node.args[0]
    return node.args[0] if is_call(node, aten.t.default) else None


def _look(state: State, found: Dense, proven: dict[Any, Verdict]) -> None:
    if _refusals(found):
        return  # what PyTorch does as well needs no row in the report
    reasons = (*against_options(NAME, state.options), *native_dense.missing(state.platform))
    if reasons:
        state.note(_row(state, found), reasons)
        return
    wrong, sqnr = _proof(state, found, proven)
    if not wrong and not state.burn():
        wrong = "the rewrite budget (option fuel) is used up"
    if wrong:
        state.note(_row(state, found), (wrong,))
        return
    with state.graph.inserting_before(found.node):
        node = state.emit(state.graph, call, [found.x, found.weight, found.bias], NAME)
    node.meta = {**found.node.meta, "val": value(node)}
    found.node.replace_all_uses_with(node)
    state.note(_row(state, found), (), sqnr)


def _refusals(found: Dense) -> Reasons:
    x, weight = value(found.x), value(found.weight)
    rows = 1
    for size in x.shape[:-1]:
        rows = rows * size
    same = x.dtype is weight.dtype and (found.bias is None or value(found.bias).dtype is weight.dtype)
    return unmet(
        (weight.device.type == "cpu", f"runs on the CPU, this product is on {weight.device.type}"),
        (weight.dtype is torch.bfloat16, f"takes bfloat16, got {str(weight.dtype).removeprefix('torch.')}"),
        (same, "takes one dtype for x, weight and bias"),
        (bool(weight.stride(1) == 1), "takes a weight whose rows are contiguous"),
        # A number of rows that is only known at run time is decided then, inside the operator.
        (not isinstance(rows, int) or rows <= FEW_ROWS, f"takes up to {FEW_ROWS} rows, this graph has {rows}"),
    )


def _proof(state: State, found: Dense, proven: dict[Any, Verdict]) -> Verdict:
    """("" or what is wrong, SQNR against the graph's own product), once for each shape; on the last rows of a large weight."""
    if state.options.verify == "off" or (state.platform.simulated and native_dense.missing(platform())):
        return "", None
    weight = state.constants[found.weight].tensor
    first = _first_row(*weight.shape)
    key = (tuple(weight.shape), tuple(weight.stride()), weight.dtype, found.bias is not None, found.node.target)
    if key not in proven or state.options.verify == "every":
        generator = torch.Generator().manual_seed(77)
        x = torch.randn(FEW_ROWS, weight.shape[1], generator=generator).to(weight.dtype)
        feed = {found.x: x, found.weight: weight[first:]}
        if found.bias is not None:
            feed[found.bias] = state.constants[found.bias].tensor[first:]
        got = call(x, weight[first:], feed[found.bias] if found.bias is not None else None)
        measured = sqnr_db(evaluate([found.node], feed)[0], got)
        enough = measured >= ACCEPT_DB
        proven[key] = "" if enough else f"wrong on a probe: {measured:.1f} dB, at least {ACCEPT_DB:.0f} is asked for", measured
    return proven[key]


def _first_row(n: int, k: int) -> int:
    """The row of a weight [n, k] from which on it is tried: all of it, or a whole number of blocks less."""
    most = max(_BLOCK, _MOST_WEIGHTS // max(k, 1))
    return 0 if n <= most else (n - most) // _BLOCK * _BLOCK


def _row(state: State, found: Dense) -> SiteReport:
    constant = state.constants[found.weight]
    n, k = constant.tensor.shape
    size = constant.tensor.nbytes
    path = constant.path.rpartition(".")[0] or inputs.module_path(found.node)
    return SiteReport(module=path, format="dense", n=n, k=k, bytes_before=size, bytes_after=size)


PASS = Pass(name="dense", apply=apply, needs=frozenset({"canonical"}), gives=frozenset({"dense"}), optional=True)
