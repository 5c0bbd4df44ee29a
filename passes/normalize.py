"""Afterwards a matrix product with a constant weight has one spelling: mm, addmm or linear with the weight on the right."""

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from qcompile.errors import brief
from qcompile.graph.change import Change
from qcompile.graph.fake import within
from qcompile.graph.nodes import aten, is_call, same_sizes, value
from qcompile.graph.walk import constant_nodes, leaves_of
from qcompile.pipeline import Pass, State
from qcompile.recognize.products import low_bit_leaves

log = logging.getLogger(__name__)

_COPIES = frozenset({aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default})


def apply(state: State) -> None:
    """Drop no-op views and copies; turn mv, bmm with one weight, and products with the weight on the left into mm."""
    for node in list(state.graph.nodes):
        if _is_nothing(node):
            node.replace_all_uses_with(node.args[0])
            state.graph.erase_node(node)
    known = constant_nodes(state.graph, state.constants)
    constant = {node for node in known if low_bit_leaves(leaves_of(node, state.constants))}  # dense weights keep their spelling
    for node in list(state.graph.nodes):
        if node in known:
            continue
        try:
            _respell(state, node, constant)
        except Exception as error:  # an odd product costs itself, not the others
            log.debug("product %s could not be written as one", node.name, exc_info=True)
            if not constant.isdisjoint(node.all_input_nodes):
                state.unread[node] = f"its product could not be written in the common form: {brief(error)}"


def _respell(state: State, node: fx.Node, constant: set[fx.Node]) -> None:
    rewritten = _rewrite(node, constant)
    if rewritten is None:
        return
    with Change(state.graph) as change:
        with state.graph.inserting_before(node):
            result = rewritten(_Emit(state.graph, value(node)))
        result.meta = {**node.meta, "val": value(result)}
        change.replace(node, result, erase=True)


def _is_nothing(node: fx.Node) -> bool:
    if is_call(node, *_COPIES):
        return not any(user.op == "output" for user in node.users)
    if is_call(node, aten.view.default, aten.reshape.default, aten.expand.default):
        source = node.args[0]
        return isinstance(source, fx.Node) and _same_shape(source, node) and not any(user.op == "output" for user in node.users)
    return False


class _Emit:
    """Adds ATen calls whose fake values are computed on the way."""

    def __init__(self, graph: fx.Graph, like: Tensor) -> None:
        self.graph = graph
        self.like = like

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        fakes = map_arg(args, value)
        with within([self.like]):
            node.meta["val"] = target(*fakes)
        return node


def _rewrite(node: fx.Node, constant: set[fx.Node]) -> Callable[[_Emit], fx.Node] | None:
    if is_call(node, aten.mv.default):
        return _mv(node, constant)
    if is_call(node, aten.mm.default):
        left, right = node.args
        return _left(left, right) if left in constant and right not in constant else None
    if is_call(node, aten.bmm.default):
        return _bmm(node, constant)
    if is_call(node, aten.addmm.default, aten.baddbmm.default):
        return _addmm(node, constant)
    return None


def _mv(node: fx.Node, constant: set[fx.Node]) -> Callable[[_Emit], fx.Node] | None:
    weight, x = node.args
    if weight not in constant or x in constant:
        return None

    def emit(call: _Emit) -> fx.Node:
        row = call(aten.unsqueeze.default, x, 0)
        product = call(aten.mm.default, row, call(aten.permute.default, weight, [1, 0]))
        return call(aten.squeeze.dim, product, 0)

    return emit


def _left(weight: Any, x: Any) -> Callable[[_Emit], fx.Node]:
    """W @ X is (X.T @ W.T).T."""

    def emit(call: _Emit) -> fx.Node:
        product = call(aten.mm.default, call(aten.permute.default, x, [1, 0]), call(aten.permute.default, weight, [1, 0]))
        return call(aten.permute.default, product, [1, 0])

    return emit


def _addmm(node: fx.Node, constant: set[fx.Node]) -> Callable[[_Emit], fx.Node] | None:
    """beta * added + alpha * (x @ W), written out unless it is a plain linear with a bias."""
    added, left, right = cast(tuple[fx.Node, fx.Node, fx.Node], node.args[:3])
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    plain = alpha == 1 and beta == 1 and node.target is aten.addmm.default
    if (_unrepeated(left) in constant) == (_unrepeated(right) in constant) or (
        plain and right in constant and value(added).dim() <= 1
    ):
        return None
    if alpha != 1 and value(node).dtype is torch.float16:
        return None  # the product alone may overflow, or be a subnormal, where the scaled one is an ordinary number
    product = aten.mm.default if node.target is aten.addmm.default else aten.bmm.default

    def emit(call: _Emit) -> fx.Node:
        result = call(product, left, right)
        inner = _rewrite(result, constant)
        if inner is not None:
            unused, result = result, inner(call)
            call.graph.erase_node(unused)
        result = result if alpha == 1 else call(aten.mul.Tensor, result, alpha)
        return call(aten.add.Tensor, result, added if beta == 1 else call(aten.mul.Tensor, added, beta))

    return emit


def _bmm(node: fx.Node, constant: set[fx.Node]) -> Callable[[_Emit], fx.Node] | None:
    left, right = (_unrepeated(item) for item in node.args)
    if right in constant and left not in constant:
        x, weight, swapped = node.args[0], right, False
    elif left in constant and right not in constant:
        x, weight, swapped = node.args[1], left, True
    else:
        return None
    single = _one_matrix(weight)
    if single is None:
        return None

    def emit(call: _Emit) -> fx.Node:
        rows = call(aten.permute.default, x, [0, 2, 1]) if swapped else x
        batch, m, k = value(cast(fx.Node, rows)).shape
        if isinstance(batch, torch.SymInt) or isinstance(m, torch.SymInt):
            batch, m = call(torch.ops.aten.sym_size.int, rows, 0), call(torch.ops.aten.sym_size.int, rows, 1)
        flat = call(aten.reshape.default, rows, [-1, k])
        matrix = single(call)
        product = call(aten.mm.default, flat, call(aten.permute.default, matrix, [1, 0]) if swapped else matrix)
        whole = call(aten.reshape.default, product, [batch, m, value(product).shape[1]])
        return call(aten.permute.default, whole, [0, 2, 1]) if swapped else whole

    return emit


def _unrepeated(weight: Any) -> Any:
    """The matrix behind its expansion to a batch (whose size may be symbolic, so that the batch itself is no constant)."""
    while _repeats(weight) or (is_call(weight, aten.view.default) and _same_shape(weight, weight.args[0])):
        weight = weight.args[0]
    return weight


def _one_matrix(weight: Any) -> Callable[[_Emit], fx.Node] | None:
    """How to get the one matrix that a batch repeats, or None if the batch holds different ones."""
    if value(weight).dim() == 2:
        return lambda _: weight
    if value(weight).shape[0] != 1:
        return None
    if is_call(weight, aten.unsqueeze.default) and weight.args[1] == 0:
        inner = weight.args[0]
        return lambda _: inner
    return lambda call: call(aten.squeeze.dim, weight, 0)


def _same_shape(left: Any, right: Any) -> bool:
    """Whether two values have the same shape whatever the symbolic sizes are."""
    return same_sizes(value(left).shape, value(right).shape)


def _repeats(weight: Any) -> bool:
    """Whether a batch of matrices is one matrix, expanded."""
    if not is_call(weight, aten.expand.default):
        return False
    source, shape = value(weight.args[0]), value(weight).shape
    return bool(same_sizes(source.shape[-2:], shape[-2:]) and (source.dim() == 2 or source.shape[0] == 1))


PASS = Pass(name="normalize", apply=apply, needs=frozenset({"constants"}), gives=frozenset({"normal"}), optional=True)
