"""Finds matrix products with a constant low-bit weight, and what stands between the product and the linear's result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.graph.nodes import LOW_BIT, Constant, aten, is_call, is_pure, prims, same_sizes, value
from qcompile.graph.walk import VIEWS, subgraph

CASTS = frozenset({prims.convert_element_type.default, aten._to_copy.default})
_REARRANGES = frozenset(
    {
        aten.permute.default,
        aten.expand.default,
        aten.copy.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.stack.default,
        aten.cat.default,
    }
)
PRODUCTS = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default, aten.linear.default})


@dataclass(slots=True, eq=False)
class Product:
    """y = x @ W.T (+ bias) as it stands in the graph, and the chain up to the result of the linear.

    weight      node of the weight operand, [K, N] if `transposed`, else [N, K]
    post        nodes that multiply the result along N: (node, True if it divides); they belong to the weight
    biases      constant nodes of [N] (or one element) added to the result, each with the number of `post` factors before it
    end         the last node of the chain; `result` has its shape and dtype
    """

    node: fx.Node
    x: fx.Node
    weight: fx.Node
    transposed: bool
    n: int
    k: int
    end: fx.Node
    post: list[tuple[fx.Node, bool]] = field(default_factory=list)
    biases: list[tuple[fx.Node, int]] = field(default_factory=list)


def find_product(node: fx.Node, constant: set[fx.Node]) -> Product | str | None:
    """The product at `node`; a sentence if it looks like a quantized linear but cannot be one; None if it is something else."""
    bias: fx.Node | None = None
    if node.target is aten.addmm.default:
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
            return "the product is scaled by alpha or beta inside addmm"
        first, x, weight = node.args[:3]
        bias = first if isinstance(first, fx.Node) else None
        transposed = True
    elif node.target is aten.linear.default:
        x, weight = node.args[:2]
        bias = node.args[2] if len(node.args) > 2 and isinstance(node.args[2], fx.Node) else None
        transposed = False
    elif is_call(node, *PRODUCTS):
        x, weight = node.args[:2]
        transposed = True
    else:
        return None
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node):
        return None
    weight = _one_matrix(weight, node, constant)
    if weight not in constant:
        return None
    if x in constant and (_holds_low_bit(x) or not _holds_low_bit(weight)):
        return None  # of two constants, the one that holds low-bit data is the weight
    shape = value(weight).shape
    if len(shape) != 2:
        return f"the weight is a batch of {shape[0]} matrices (experts); only single linears are rewritten"
    k, n = (shape[0], shape[1]) if transposed else (shape[1], shape[0])
    dims = value(node).dim()
    if bias is not None and (bias not in constant or not _along(bias, dims, dims - 1, n)):
        return "something that is not a constant bias along N is added inside the product"
    product = Product(node, x, weight, transposed, int(n), int(k), node)
    if bias is not None:
        product.biases.append((bias, 0))
    _grow(product, constant)
    return product


def _one_matrix(weight: fx.Node, product: fx.Node, constant: set[fx.Node]) -> fx.Node:
    """The [K, N] matrix that a batch repeats for every entry, or is a batch of one of; the weight itself if it is neither."""
    if value(weight).dim() < 3:
        return weight
    shape = list(value(weight).shape[-2:])
    node = weight
    while is_call(node, aten.expand.default, *VIEWS) and value(node).dim() > 2 and isinstance(node.args[0], fx.Node):
        if list(value(node.args[0]).shape[-2:]) != shape:
            break
        node = node.args[0]
    leading = value(node).shape[:-2]
    if node not in constant or not all(_is_one(size) for size in leading):
        return weight
    if not leading:
        return node
    with product.graph.inserting_before(product):
        single = product.graph.call_function(aten.view.default, (node, shape))
    single.meta["val"] = value(node).view(shape)
    constant.add(single)
    return single


def _holds_low_bit(node: fx.Node) -> bool:
    """Whether a constant is computed from packed or low-bit data."""
    return bool(low_bit_leaves([item for item in subgraph([node], set()) if item.op == "placeholder"]))


def _grow(product: Product, constant: set[fx.Node]) -> None:
    """Follow the only user while it keeps N as it is, scales along N, or adds a constant along N."""
    axis = value(product.node).dim() - 1
    kept_end, kept_post, kept_biases = product.end, 0, len(product.biases)
    node = product.node
    while len(node.users) == 1:
        user = next(iter(node.users))
        step = _step(user, node, axis, product, constant)
        if step is None:
            break
        axis = step.axis
        if step.factor is not None:
            product.post.append(step.factor)
        elif step.bias is not None:
            product.biases.append((step.bias, len(product.post)))
        if step.factor is not None or step.bias is not None:
            kept_end, kept_post, kept_biases = user, len(product.post), len(product.biases)
        node = user
    product.end = kept_end
    del product.post[kept_post:], product.biases[kept_biases:]


@dataclass(slots=True)
class _Step:
    axis: int
    factor: tuple[fx.Node, bool] | None = None
    bias: fx.Node | None = None


def _step(user: fx.Node, node: fx.Node, axis: int, product: Product, constant: set[fx.Node]) -> _Step | None:
    if not isinstance(value(user), Tensor):
        return None
    if is_call(user, *VIEWS):
        new = _axis_after_view(value(node).shape, value(user).shape, axis)
        return None if new is None else _Step(new)
    if is_call(user, aten.permute.default):
        order = [int(dim) % value(node).dim() for dim in user.args[1]]  # type: ignore[union-attr,arg-type]
        return _Step(order.index(axis))
    if value(node).dtype is torch.float16 and value(user).dtype is not torch.float16:
        return None  # what is scaled after leaving float16 may be too small for float16, or too large
    if is_call(user, *CASTS) and value(user).dtype.is_floating_point:
        return _Step(axis)
    if is_call(user, aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor) and len(user.args) == 2 and not user.kwargs:
        left, right = user.args
        divides = user.target is aten.div.Tensor
        other = right if left is node else left
        if not isinstance(other, fx.Node) or other not in constant or not same_sizes(value(user).shape, value(node).shape):
            return None
        if (divides and left is not node) or not _along(other, value(node).dim(), axis, product.n):
            return None
        # A bias in a wider dtype than the product's stays outside: inside the kernel the sum would be rounded to the narrower one.
        kinds = {value(user).dtype, value(node).dtype, value(product.node).dtype}
        if user.target is aten.add.Tensor and len(kinds) > 1:
            return None
        return _Step(axis, bias=other) if user.target is aten.add.Tensor else _Step(axis, factor=(other, divides))
    return None


def _axis_after_view(before: torch.Size, after: torch.Size, axis: int) -> int | None:
    """Where the axis is after a view, if it survives whole with the same dimensions (up to ones) behind it."""
    if axis == len(before) - 1 and len(after) and same_sizes(after[-1:], before[-1:]):
        return len(after) - 1
    kept = [size for size in before if not _is_one(size)]
    if same_sizes(kept, [size for size in after if not _is_one(size)]) and not _is_one(before[axis]):
        place = sum(1 for size in before[:axis] if not _is_one(size))
        return [index for index, size in enumerate(after) if not _is_one(size)][place]
    return None


def _is_one(size: Any) -> bool:
    """Whether a size is the number 1; a symbolic one counts as larger, without a guard."""
    return isinstance(size, int) and size == 1


def _along(node: fx.Node, dims: int, axis: int, n: int) -> bool:
    """Whether a constant broadcasts against a tensor of `dims` dimensions along `axis` (of size n) only."""
    shape = value(node).shape
    if value(node).numel() == 1:
        return True
    padded = [1] * (dims - len(shape)) + list(shape)
    return len(padded) == dims and all(size == (n if index == axis else 1) for index, size in enumerate(padded))


def low_bit_leaves(leaves: list[fx.Node]) -> list[fx.Node]:
    """The leaves that hold packed or low-bit data."""
    return [leaf for leaf in leaves if isinstance(value(leaf), Tensor) and value(leaf).dtype in LOW_BIT and value(leaf).dim() >= 1]


def touches_low_bit(node: fx.Node, low_bit: Mapping[fx.Node, Constant] | set[fx.Node], limit: int = 40) -> fx.Node | None:
    """A low-bit input that `node` reaches through element-wise and view operators alone (a weight that is not constant)."""
    stack, seen = [node], {node}
    while stack and len(seen) < limit:
        current = stack.pop()
        if current in low_bit:
            return current
        if current is not node and not _elementwise(current):
            continue
        for parent in current.all_input_nodes if current.op == "call_function" else ():
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return None


def depends_on_product(node: fx.Node) -> bool:
    """Whether a product lies on the way to `node`: then it is no weight, but something computed from activations, masked say."""
    return any(is_call(item, *PRODUCTS) for item in subgraph([node], set()))


def _elementwise(node: fx.Node) -> bool:
    if not is_pure(node) or node.op != "call_function":
        return False
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or is_call(node, *VIEWS, *CASTS, *_REARRANGES)
