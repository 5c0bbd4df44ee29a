"""Finds attention in a graph, as PyTorch's own operator or spelled as product, softmax, product, and proposes what it computes.

A proposal is a guess from the graph's structure; qcompile.recognize.attention_proof proves it by value before anything is
rewritten.
"""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.graph.nodes import aten, is_call, is_pure, value
from qcompile.graph.walk import VIEWS

FLASH = aten._scaled_dot_product_flash_attention_for_cpu.default
_LAYOUT = VIEWS | {aten.permute.default, aten.expand.default, aten.transpose.int}
_FACTORS = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})
_FILLS = frozenset({aten.full.default, aten.scalar_tensor.default})
# Nodes between the two products, at most: a softmax in its longest spelling (safe softmax, decomposed) has about 20.
_MOST_NODES = 80
_NEAR = 8  # nodes from a sum back to the exponentials, or from a division back to the sum: casts, views and a mask lie between


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Attention:
    """out[b, h, i] = sum_j softmax_j(scale * q[b, h, i] . k[b, h // group, j] + mask[b, h, i, j]) v[b, h // group, j], as nodes.

    q [B, H, Lq, D], k and v [B, Hkv, S, D], group = H / Hkv; mask: broadcasts to [B, H, Lq, S], float (added) or bool (true: seen),
    or None; causal: query i sees keys 0..i; nan_if_unseen: a query without any key gives NaN (a plain softmax) instead of zeros.
    """

    out: fx.Node
    q: fx.Node
    k: fx.Node
    v: fx.Node
    mask: fx.Node | None
    scale: float
    causal: bool = False
    nan_if_unseen: bool = False

    @property
    def inputs(self) -> list[fx.Node]:
        return [self.q, self.k, self.v, *([] if self.mask is None else [self.mask])]


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for every input, found out without a guard that would recompile."""
    if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt):
        return str(a) == str(b)
    return bool(a == b)


def find_attention(node: fx.Node) -> list[Attention] | str | None:
    """Proposals for the attention that ends in `node`, best first; a sentence if it cannot be read; None if there is none."""
    if is_call(node, FLASH):
        return _flash(node)
    if is_call(node, aten.bmm.default):
        return _products(node)
    return None


def _flash(node: fx.Node) -> list[Attention] | str | None:
    outputs = {user.args[1]: user for user in node.users if is_call(user, operator.getitem) and user.users}
    if 1 in outputs:
        return "its logsumexp is used, which our kernel does not give"
    if 0 not in outputs:
        return None
    q, k, v = node.args[:3]
    assert isinstance(q, fx.Node) and isinstance(k, fx.Node) and isinstance(v, fx.Node)
    if len(node.args) > 3 and node.args[3] != 0.0:
        return "it drops weights at random"
    causal = bool(node.args[4]) if len(node.args) > 4 else False
    mask, scale = node.kwargs.get("attn_mask"), node.kwargs.get("scale")
    if mask is not None and not isinstance(mask, fx.Node):
        return "its mask is no tensor of the graph"
    scale = 1 / math.sqrt(value(q).shape[-1]) if scale is None else scale
    if not isinstance(scale, float):
        return "its scale is no constant"
    base = Attention(out=outputs[0], q=q, k=k, v=v, mask=mask, scale=scale, causal=causal)
    deepest = replace(base, k=_shared_heads(k, value(q)), v=_shared_heads(v, value(q)))
    return [base] if deepest.k is k and deepest.v is v else [deepest, base]


def _shared_heads(node: fx.Node, q: Tensor) -> fx.Node:
    """The K or V [B, Hkv, S, D] that `node` [B, H, S, D] repeats for every query head; itself if it repeats none."""
    behind = [item for item, factor in _tensors_behind(node, node, q) if factor == 1.0]
    return behind[-1] if behind else node


def _tensors_behind(node: fx.Node, like: fx.Node | None, q: Tensor) -> list[tuple[fx.Node, float]]:
    """Tensors [B, heads, S, D] that `node` is a view, a repetition or a multiple of, with the multiple; the nearest first.

    like: a tensor that has the S to look for, or None for a K or V of any length.
    """
    batch, heads, _, width = q.shape
    length = None if like is None else value(like).shape[2]
    found: list[tuple[fx.Node, float]] = []
    factor = 1.0
    while True:
        here = value(node)
        if here.dim() == 4 and same_size(here.shape[0], batch) and same_size(here.shape[3], width) and here.dtype is q.dtype:
            divides = isinstance(here.shape[1], int) and here.shape[1] > 0 and heads % here.shape[1] == 0
            if divides and (length is None or same_size(here.shape[2], length)):
                found.append((node, factor))
        step = _factor(node)
        if step is not None:
            factor *= step[1]
            node = step[0]
        elif is_call(node, *_LAYOUT) and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        else:
            return found


def _factor(node: fx.Node) -> tuple[fx.Node, float] | None:
    """(x, c) if the node is x * c or x / c with a number c."""
    if not is_call(node, *_FACTORS) or len(node.args) != 2:
        return None
    left, right = node.args
    multiplies = is_call(node, aten.mul.Tensor, aten.mul.Scalar)
    number = _number(right)
    if isinstance(left, fx.Node) and number is not None and number != 0:
        return left, number if multiplies else 1 / number
    number = _number(left)
    return (right, number) if multiplies and isinstance(right, fx.Node) and number is not None else None


def _number(item: Any) -> float | None:
    if isinstance(item, int | float):
        return float(item)
    if is_call(item, *_FILLS):
        fill = item.args[1] if item.target is aten.full.default else item.args[0]
        return float(fill) if isinstance(fill, int | float) else None
    return None


def _products(node: fx.Node) -> list[Attention] | str | None:
    weights, values = node.args
    assert isinstance(weights, fx.Node) and isinstance(values, fx.Node)
    before = list(_back_to_product(weights))
    scores = next((item for item in before if is_call(item, aten.bmm.default)), None)
    if scores is None or not _normalizes(before):
        return None
    out = next(iter(node.users)) if len(node.users) == 1 and is_call(next(iter(node.users)), *VIEWS) else node
    if value(out).dim() != 4:
        return "its operands have no separate batch and heads"
    after = _between(scores, node)
    if after is None:
        return "its scores or weights are used elsewhere"
    mask = _mask(after, scores)
    if isinstance(mask, str):
        return mask
    like = value(out)
    q_node, k_node = scores.args
    assert isinstance(q_node, fx.Node) and isinstance(k_node, fx.Node)
    queries = [
        (item, factor) for item, factor in _tensors_behind(q_node, out, like) if same_size(value(item).shape[1], like.shape[1])
    ]
    keys, held = _tensors_behind(k_node, None, like), _tensors_behind(values, None, like)
    if not queries or not keys or not held:
        return "its operands are no [batch, heads, rows, width]"
    proposals: list[Attention] = []
    for (q, q_factor), (k, k_factor), (v, v_factor) in ((queries[-1], keys[-1], held[-1]), (queries[0], keys[0], held[0])):
        if v_factor == 1.0:
            base = Attention(out=out, q=q, k=k, v=v, mask=mask, scale=q_factor * k_factor)
            proposals += [
                replace(base, scale=base.scale * inside, nan_if_unseen=nan, mask=seen)
                for inside in _scales(after)
                for nan in (True, False)
                for seen in _seen(mask)
            ]
    return proposals or "its values are scaled"


def _seen(mask: fx.Node | None) -> list[fx.Node | None]:
    """What may say which keys are seen: the mask, or, where that says which are hidden, what it is the opposite of."""
    opposite = mask.args[0] if mask is not None and is_call(mask, aten.bitwise_not.default, aten.logical_not.default) else None
    return [mask, opposite] if isinstance(opposite, fx.Node) and value(opposite).dtype is torch.bool else [mask]


def _scales(after: list[fx.Node]) -> list[float]:
    """What the scores may be multiplied with on their way: Inductor's softmax of a scaled tensor scales on two ways, and by one."""
    factors = {step[1]: None for item in after if (step := _factor(item)) is not None and step[1] != 1.0}
    return list(dict.fromkeys((math.prod(factors), *factors)))


def _normalizes(before: list[fx.Node]) -> bool:
    """Whether the weights are a softmax: as one operator, or exponentials that something divides by their sum.

    Exponentials alone are no sign of attention: linear attention and state-space layers let values decay by them.
    """
    if any(is_call(item, aten._softmax.default, aten._safe_softmax.default, aten.softmax.int) for item in before):
        return True
    sums = [item for item in before if is_call(item, aten.sum.dim_IntList) and _comes_from(item, aten.exp.default)]
    divided = [item.args[1] for item in before if is_call(item, aten.div.Tensor)]
    divided += [item.args[0] for item in before if is_call(item, aten.reciprocal.default)]
    return any(isinstance(by, fx.Node) and any(_follows(by, total) for total in sums) for by in divided)


def _comes_from(node: fx.Node, target: object) -> bool:
    """Whether a few steps before the node there is a call of `target`."""
    return any(item.target is target for item in islice(_ancestors(node), _NEAR))


def _follows(node: fx.Node, of: fx.Node) -> bool:
    return any(item is of for item in islice(_ancestors(node), _NEAR))


def _ancestors(node: fx.Node) -> Iterator[fx.Node]:
    """The node and what it is computed from, nearest first, without what comes before products."""
    queue, seen = [node], {node}
    while queue:
        current = queue.pop(0)
        yield current
        for parent in current.all_input_nodes if not is_call(current, aten.bmm.default) else ():
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)


def _back_to_product(weights: fx.Node) -> Iterator[fx.Node]:
    """Nodes before the weights, nearest first, up to the product that gives the scores (and that product)."""
    queue, seen = [weights], {weights}
    while queue and len(seen) <= _MOST_NODES:
        node = queue.pop(0)
        yield node
        if is_call(node, aten.bmm.default):
            return
        for parent in node.all_input_nodes if is_pure(node) else ():
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)


def _between(scores: fx.Node, end: fx.Node) -> list[fx.Node] | None:
    """The nodes that depend on the scores, without `end` and what only follows from it; None if they lead elsewhere as well."""
    found: dict[fx.Node, None] = {}
    queue = [scores]
    while queue:
        for user in queue.pop().users:
            # Sizes that are read off a tensor are no use of its values.
            if user is not end and user not in found and not isinstance(value(user), int | torch.SymInt):
                if user.op == "output" or not is_pure(user) or len(found) > _MOST_NODES:
                    return None
                found[user] = None
                queue.append(user)
    return list(found)


def _mask(after: list[fx.Node], scores: fx.Node) -> fx.Node | str | None:
    """What else the scores are combined with: one tensor, nothing, or a sentence."""
    inside = {*after, scores}
    others = {
        parent: None
        for node in after
        for parent in node.all_input_nodes
        if parent not in inside and not is_call(parent, *_FILLS) and isinstance(value(parent), Tensor)
    }
    if len(others) > 1:
        return "its scores meet more than one other tensor"
    return next(iter(others), None)
