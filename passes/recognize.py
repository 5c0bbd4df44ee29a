"""Afterwards every quantized linear whose meaning is proven is one `qcompile::quantized_linear`; all others are as they were."""

import logging

import torch
from torch import fx

from qcompile.activations import NO_ACTIVATION_QUANT
from qcompile.errors import brief
from qcompile.graph.change import Change
from qcompile.graph.nodes import is_call, named_arguments, value
from qcompile.graph.walk import constant_nodes, followers, leaves_of
from qcompile.kernel import Site
from qcompile.operators import quantized_linear
from qcompile.pipeline import GraphSite, Pass, State
from qcompile.recognize.activation import Rounded, recognize_activation
from qcompile.recognize.products import PRODUCTS, Product, depends_on_product, find_product, low_bit_leaves, touches_low_bit
from qcompile.recognize.reading import Reading
from qcompile.recognize.rewrite import raise_product
from qcompile.recognize.still_true import Recheck
from qcompile.recognize.weight import Reader
from qcompile.reporting.rows import SiteReport
from qcompile.torch_internals import inputs

log = logging.getLogger(__name__)


def apply(state: State) -> None:
    """Look at every product; raise it, or note why not."""
    constant = constant_nodes(state.graph, state.constants)
    reader = Reader(state.constants)
    for node in list(state.graph.nodes):
        if node in state.unread:
            _decline(state, node, _leaf(state, node, constant), state.unread[node])
            _explained(state, _low_bit(state, _weight_operand(state, node, constant)))
            continue
        if not is_call(node, *PRODUCTS):
            continue
        try:
            _look(state, node, constant, reader)
        except Exception as error:  # an odd graph must never stop the user's model
            log.debug("product %s could not be read", node.name, exc_info=True)
            if _is_about_low_bit(state, node, constant):
                _decline(state, node, _leaf(state, node, constant), f"could not be read: {brief(error)}")
                _explained(state, _low_bit(state, _weight_operand(state, node, constant)))


def _leaf(state: State, node: fx.Node, constant: set[fx.Node]) -> fx.Node | None:
    """A constant of the product's weight, to name a product that could not be read."""
    weight = _weight_operand(state, node, constant)
    return next(iter(leaves_of(weight, state.constants)), None) if weight is not None else None


def _is_about_low_bit(state: State, node: fx.Node, constant: set[fx.Node]) -> bool:
    """Whether the weight of a product comes from low-bit data, as far as can be told of one that could not be read."""
    inputs = {item for item in state.graph.find_nodes(op="placeholder") if low_bit_leaves([item])}
    touched = any(touches_low_bit(operand, inputs) is not None for operand in node.all_input_nodes)
    return touched or _weight_operand(state, node, constant) is not None


def _look(state: State, node: fx.Node, constant: set[fx.Node], reader: Reader) -> None:
    product = find_product(node, constant)
    weight = product.weight if isinstance(product, Product) else _weight_operand(state, node, constant)
    low = _low_bit(state, weight)
    if isinstance(product, Product) and low:
        reading = reader.read(product)
        if isinstance(reading, str):
            state.declined_by_value = True
            _decline(state, node, _largest(low), reading)
        elif not state.burn():
            _decline(state, node, _largest(low), "the rewrite budget (option fuel) is used up")
        else:
            _raise(state, product, reading, recognize_activation(product.x, constant, state.constants))
            if product.x in constant:  # what follows from it is no weight: it comes from the call that now stands there
                constant.difference_update(followers(state.sites[-1].result))
    elif isinstance(product, str) and low:
        _decline(state, node, _largest(low), product)
    elif isinstance(product, Product):
        state.dense.extend(state.constants[leaf].path for leaf in leaves_of(product.weight, state.constants)[:1])
    else:
        _decline_changing(state, node)
    _explained(state, low)


def _low_bit(state: State, weight: fx.Node | None) -> list[fx.Node]:
    """The low-bit leaves of a weight: its codes, and scales in float8."""
    return [] if weight is None else low_bit_leaves(leaves_of(weight, state.constants))


def _explained(state: State, leaves: list[fx.Node]) -> None:
    state.explained.update(id(state.constants[leaf].tensor) for leaf in leaves)


def _weight_operand(state: State, node: fx.Node, constant: set[fx.Node]) -> fx.Node | None:
    operands = [item for item in node.args if isinstance(item, fx.Node) and item in constant]
    return next((item for item in operands if low_bit_leaves(leaves_of(item, state.constants))), None)


def _decline_changing(state: State, node: fx.Node) -> None:
    """A weight that is computed from low-bit data, but not from constants alone."""
    inputs = {item for item in state.graph.find_nodes(op="placeholder") if low_bit_leaves([item])}
    for operand in node.all_input_nodes:
        touched = touches_low_bit(operand, inputs)
        if touched is not None and not depends_on_product(operand):
            refused = touches_low_bit(operand, set(state.refused))
            depends = "its weight depends on an input of the model, so it is no constant"
            reason = depends if refused is None else state.refused[refused]
            _decline(state, node, touched if touched in state.paths else None, reason)
            return


def _decline(state: State, node: fx.Node, leaf: fx.Node | None, reason: str) -> None:
    identity = id(state.paths[leaf].tensor) if leaf is not None and leaf in state.paths else None
    state.declined.append(SiteReport(module=module_path(state, node, leaf), declined=reason, identity=identity))


def _largest(leaves: list[fx.Node]) -> fx.Node:
    """The leaf that holds the codes, by its size."""
    return max(leaves, key=lambda leaf: value(leaf).nbytes)


def module_path(state: State, node: fx.Node, leaf: fx.Node | None) -> str:
    """The layer's path: where its packed weight lives, else the module the node was traced in."""
    if leaf is not None and leaf in state.paths:
        return state.paths[leaf].layer
    return inputs.module_path(node)


def _raise(state: State, product: Product, reading: Reading, rounded: Rounded | None) -> None:
    recheck = Recheck.of(product, reading, rounded, state.constants)
    with Change(state.graph) as change:
        node, result = raise_product(state.graph, state.emit, product, reading, rounded)
        found = _site(state, product, reading, rounded, (node, result), recheck)
        change.replace(product.end, result)
    state.sites.append(found)


def _site(
    state: State,
    product: Product,
    reading: Reading,
    rounded: Rounded | None,
    made: tuple[fx.Node, fx.Node],
    recheck: Recheck,
) -> GraphSite:
    """made: the canonical call and what stands for the linear's result."""
    proposal = reading.proposal
    leaves = leaves_of(product.weight, state.constants)
    tensors = [state.constants[leaf].tensor for leaf in leaves]
    low = _largest(low_bit_leaves(leaves))
    quant = rounded.quant if rounded is not None else NO_ACTIVATION_QUANT
    given = named_arguments(made[0])
    outer, offsets = given["outer"] is not None, given["offsets"]
    site = Site(
        n=product.n,
        k=product.k,
        bits=proposal.bits,
        group=proposal.group,
        symmetric=proposal.symmetric,
        act_order=proposal.act_order,
        codebook=proposal.codebook,
        dtype=value(product.x).dtype,
        scale_dtype=torch.float32 if product.post and not outer else reading.facts.scale_dtype,
        has_bias=bool(product.biases),
        activation=quant,
        zero_range=reading.facts.zero_range,
        device=value(product.x).device.type,
        allow_a8=state.options.allow_a8,
        act_zero=rounded is not None and rounded.zero is not None,
        outer=outer,
        rows=1 if product.post else proposal.rows,
        outer_group=proposal.outer_group if proposal.outer_group != product.k else 0,
        offset=offsets is not None,
        offset_dtype=torch.float32 if offsets is None else value(offsets).dtype,
        outer_offset=given["outer_offset"] is not None,
        inner_bits=reading.facts.inner_bits,
    )
    return GraphSite(
        *made,
        product.end,
        product.weight,
        tuple(leaves),
        proposal,
        reading.guess.reader,
        site,
        recheck,
        module=module_path(state, product.node, low),
        identity=id(tensors[leaves.index(low)]),
        bytes_before=sum(tensor.nbytes for tensor in tensors),
    )


def holds(state: State) -> list[str]:
    return [f"{site.module} is no canonical call" for site in state.sites if not is_call(site.node, quantized_linear)]


PASS = Pass(name="recognize", apply=apply, needs=frozenset({"constants", "normal"}), gives=frozenset({"canonical"}), holds=holds)
