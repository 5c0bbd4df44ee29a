"""Builds the canonical call of a recognized product, behind the product."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.activations import NO_ACTIVATION_QUANT
from qcompile.graph.nodes import aten, is_call, prims, same_sizes, value
from qcompile.graph.tracing import Emitter
from qcompile.graph.walk import VIEWS
from qcompile.meaning import BLOCK_SCALE_DTYPES, Operands
from qcompile.operators import quantized_linear
from qcompile.recognize.activation import Rounded
from qcompile.recognize.products import CASTS, Product
from qcompile.recognize.reading import Reading


def raise_product(
    graph: fx.Graph, emit: Emitter, product: Product, reading: Reading, rounded: Rounded | None
) -> tuple[fx.Node, fx.Node]:
    """(canonical call, node that may stand for product.end). Only adds nodes: the product's own chain keeps its users."""
    proposal = reading.proposal
    quant = rounded.quant if rounded is not None else NO_ACTIVATION_QUANT
    with graph.inserting_before(product.end.next):
        operands = emit(graph, lambda *leaves: tuple(proposal.unpack(leaves)), reading.inputs, ("unpack", reading.key))
        operands = Operands(*operands)
        codes, outer, shift = operands.codes, operands.outer, operands.outer_offset
        scales, offsets = operands.scales, operands.offsets
        zeros = None if proposal.symmetric else operands.zeros
        perm = operands.perm if proposal.act_order else None
        if product.post:
            divides = [divide for _, divide in product.post]
            factors = [node for node, _ in product.post]

            if outer is None and reading.facts.scale_dtype in BLOCK_SCALE_DTYPES:
                outer = emit(graph, _ones(product.n), factors[:1], ("ones", product.n))

            def scaled(inner: Any, outer: Any) -> tuple[Any, Any]:
                level = inner if outer is None else outer
                level = emit(graph, _scaled(divides), [level, *factors], ("scaled", *divides))
                return (level, None) if outer is None else (inner, level)

            scales, outer = scaled(scales, outer)
            offsets, shift = (None, None) if offsets is None else scaled(offsets, shift)
        bias = _bias(graph, emit, product)
        x, act_scale, act_zero = product.x, None, None
        if rounded is not None:
            x, act_scale, act_zero = _shaped_like(graph, rounded.source, product.x), rounded.scale, rounded.zero
        static: dict[str, Any] = {"group": proposal.group, "codebook": proposal.codebook, "activation": quant.spec}
        if proposal.outer_group:
            static["outer_group"] = proposal.outer_group
        given: Any = (codes, scales, zeros, perm, bias, act_scale, act_zero, outer, offsets, shift)
        node = graph.call_function(quantized_linear, (x, *given), static)
        node.meta = dict(product.node.meta)
        return node, _replay(graph, product, node)


def _scaled(divides: list[bool]) -> Any:
    """scales [N, G] (or outer ones [N, 1]) times (or divided by) factors that lie along N."""

    def run(scales: Tensor, *factors: Tensor) -> Tensor:
        result = scales.to(torch.float32)
        for factor, divide in zip(factors, divides, strict=True):
            column = factor.to(torch.float32).reshape(-1, 1)
            result = result / column if divide else result * column
        return result

    return run


def _ones(n: int) -> Any:
    """An outer scale of [n, 1] that changes nothing, beside a factor."""
    return lambda factor: torch.ones((n, 1), dtype=torch.float32, device=factor.device)


def _bias(graph: fx.Graph, emit: Emitter, product: Product) -> fx.Node | None:
    """All biases as one [N], each times the factors that come after it."""
    if not product.biases:
        return None
    counts = [count for _, count in product.biases]
    divides = [divide for _, divide in product.post]
    n, dtype = product.n, value(product.node).dtype

    def total(*tensors: Tensor) -> Tensor:
        biases, factors = tensors[: len(counts)], tensors[len(counts) :]
        result = None
        for bias, count in zip(biases, counts, strict=True):
            part = bias.to(torch.float32).reshape(-1)
            for factor, divide in list(zip(factors, divides, strict=True))[count:]:
                part = part / factor.to(torch.float32).reshape(-1) if divide else part * factor.to(torch.float32).reshape(-1)
            result = part if result is None else result + part
        assert result is not None
        return result.expand(n).to(dtype).contiguous()

    nodes = [node for node, _ in product.biases] + [node for node, _ in product.post]
    if len(nodes) == 1 and value(nodes[0]).shape == (n,) and value(nodes[0]).dtype is dtype:
        return nodes[0]
    result: fx.Node = emit(graph, total, nodes, ("bias", n, dtype, *counts, *divides))
    return result


def _shaped_like(graph: fx.Graph, x: fx.Node, like: fx.Node) -> fx.Node:
    """x seen with the shape of `like`, which has as many elements and the same K last."""
    if same_sizes(value(x).shape, value(like).shape):
        return x
    shape = [-1, value(like).shape[-1]] if len(value(like).shape) == 2 else list(value(like).shape)
    view = graph.call_function(aten.reshape.default, (x, shape))
    view.meta = {**like.meta, "val": value(like)}
    return view


def _swapped(old: Any, new: fx.Node) -> Callable[[fx.Node], fx.Node]:
    """An argument map for node_copy that puts one node in place of another."""
    return lambda item: new if item is old else item


def _replay(graph: fx.Graph, product: Product, node: fx.Node) -> fx.Node:
    """The product's chain without its factors and biases, on top of the canonical call."""
    old, current = product.node, node
    while old is not product.end:
        old = next(iter(old.users))
        if is_call(old, *VIEWS, *CASTS, aten.permute.default):
            source = old.args[0]
            current = graph.node_copy(old, _swapped(source, current))
            current.meta = dict(old.meta)
        elif value(old).dtype is not value(current).dtype:
            converted = graph.call_function(prims.convert_element_type.default, (current, value(old).dtype))
            converted.meta = {**old.meta, "val": value(current).to(value(old).dtype)}
            current = converted
    return current
