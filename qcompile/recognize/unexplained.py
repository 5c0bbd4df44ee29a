"""Rows for low-bit constants that no other row is about: which operator takes them, and why that is not rewritten."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from qcompile.graph.nodes import Constant, aten, is_call, value
from qcompile.graph.walk import VIEWS, constant_nodes
from qcompile.recognize.products import CASTS, low_bit_leaves
from qcompile.reporting.rows import SiteReport
from qcompile.torch_internals.tensors import HigherOrderOperator, OpOverload

# Operators that multiply a weight, or look it up, and the position of the weight among their arguments.
_WEIGHT_AT = {
    "mm": 1,
    "bmm": 1,
    "linear": 1,
    "addmm": 2,
    "baddbmm": 2,
    "addbmm": 2,
    "mv": 0,
    "addmv": 1,
    "convolution": 1,
    "_convolution": 1,
    "embedding": 0,
    "_embedding_bag": 0,
    "_grouped_mm": 1,
    "_int_mm": 1,
    "_scaled_mm": 1,
    "_scaled_mm_v2": 1,
    "_scaled_grouped_mm": 1,
    "_weight_int4pack_mm": 1,
    "_weight_int4pack_mm_for_cpu": 1,
    "_weight_int4pack_mm_with_scales_and_zeros": 1,
    "_weight_int8pack_mm": 1,
    "_dyn_quant_matmul_4bit": 1,
}
_OF_CODES = {"_int_mm", "_scaled_mm", "_scaled_mm_v2", "_scaled_grouped_mm"}
_TABLES = {"embedding", "_embedding_bag"}
_LOOKUPS = (aten.index.Tensor, aten.index_select.default, aten.gather.default)
_OWN = {"aten", "prims", "prim", "qcompile"}


def rows(
    graph: fx.Graph,
    constants: Mapping[fx.Node, Constant],
    refused: Mapping[str, str],
    explained: Collection[int],
    modules: Collection[str],
) -> list[SiteReport]:
    """One row for each module whose low-bit constants reach an operator of which no row tells.

    graph, constants: as they were captured. refused: names of inputs that are no constants after all -> the reason.
    explained: ids of the tensors, and modules: paths, that rows are about already.
    """
    fixed = constant_nodes(graph, constants)
    found: dict[str, tuple[int, SiteReport]] = {}
    for node in low_bit_leaves(list(constants)):
        constant = constants[node]
        if id(constant.tensor) in explained or constant.layer in modules:
            continue
        takers = list(dict.fromkeys(_takers(node, fixed)))
        if not takers:
            continue
        reason = refused.get(node.name) or " and ".join(takers)
        row = SiteReport(module=constant.layer, declined=reason, identity=id(constant.tensor))
        size = constant.tensor.nbytes
        if constant.layer not in found or size > found[constant.layer][0]:  # the codes tell, not their scales
            found[constant.layer] = (size, row)
    return [row for _, row in found.values()]


def leaving(graph: fx.Graph, constants: Mapping[fx.Node, Constant], known: Collection[object]) -> list[Tensor]:
    """Low-bit constants, but for those of these ids, that meet no input of the graph: what is made of them leaves it."""
    fixed = constant_nodes(graph, constants)
    left = [node for node in low_bit_leaves(list(constants)) if id(constants[node].tensor) not in known]
    return [constants[node].tensor for node in left if _only_leaves(node, fixed)]


def _only_leaves(leaf: fx.Node, fixed: Collection[fx.Node]) -> bool:
    seen, stack = {leaf}, [leaf]
    while stack:
        for user in stack.pop().users:
            if user not in fixed and user.op != "output":
                return False
            if user not in seen and user.op != "output":
                seen.add(user)
                stack.append(user)
    return True


def _takers(leaf: fx.Node, fixed: Collection[fx.Node]) -> Iterator[str]:
    """What is said about each operator in which something computed from this constant alone meets what is no constant."""
    seen, stack = {leaf}, [leaf]
    while stack:
        current = stack.pop()
        for user in current.users:
            if user in fixed:
                if user not in seen:
                    seen.add(user)
                    stack.append(user)
            elif user.op == "call_function":
                sentence = _sentence(user, current, leaf)
                if sentence:
                    yield sentence


def _sentence(user: fx.Node, operand: fx.Node, leaf: fx.Node) -> str:
    """Why `user` leaves the weight `operand` as it is; "" if the operand is no weight there."""
    if is_call(user, *_LOOKUPS):
        return "its rows are looked up as in an embedding; only linears are rewritten" if _is_looked_up(user, operand) else ""
    namespace, name = _name(user.target)
    if namespace is None:
        return ""
    operator = f"{namespace}::{name}" if namespace else name
    if namespace not in _OWN:
        # Of an operator that is called through another one, the first argument is a function.
        inner = next((item for item in user.args if isinstance(item, OpOverload)), None)
        if inner is None and namespace == "":
            return f"it is used inside {operator} (a branch, or the body of a loop), where linears are not rewritten"
        called = operator if inner is None else f"{operator}({inner})"
        return f"its weight goes into {called}, an operator that qcompile cannot read"
    at = _WEIGHT_AT.get(name)
    if namespace != "aten" or at is None or at >= len(user.args) or user.args[at] is not operand:
        return ""
    kind = str(value(leaf).dtype).removeprefix("torch.")
    if name in _OF_CODES:
        return f"its {kind} codes are multiplied as they are by {operator}; only products with a dequantized weight are rewritten"
    if name in _TABLES:
        return "it is the table of an embedding; only linears are rewritten"
    if name.endswith("convolution"):
        return "it is the weight of a convolution; only linears are rewritten"
    if name.startswith(("_weight_int", "_dyn_quant")):
        return f"it is packed already for {operator}, a kernel of PyTorch's, which runs as before"
    return f"its weight goes into {operator} in a way that is not rewritten"


def _name(target: Any) -> tuple[str | None, str]:
    """(namespace, name) of an operator; the namespace is "" for one of a higher order, None for what is none."""
    if isinstance(target, OpOverload):
        return target.namespace, target._schema.name.split("::")[1]
    if isinstance(target, HigherOrderOperator):
        return "", target.name()
    return None, ""


def _is_looked_up(user: fx.Node, operand: fx.Node) -> bool:
    """Whether rows of a table are taken and scaled: a table of indices or a mask is not."""
    if user.args[0] is not operand or value(operand).dim() < 2:
        return False
    if value(operand).dtype.is_floating_point and value(operand).dtype.itemsize > 1:
        return True
    node = user
    while len(node.users) == 1:
        node = next(iter(node.users))
        if is_call(node, aten.mul.Tensor, aten.div.Tensor):
            return isinstance(value(node), Tensor) and value(node).dtype.is_floating_point
        if not is_call(node, aten.sub.Tensor, *VIEWS, *CASTS):
            return False
    return False
