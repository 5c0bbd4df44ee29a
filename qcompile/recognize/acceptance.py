"""When a reading of a weight may be believed, and what has to be known of the weight to serve it.

The rule: **every weight is compared, element by element, with what its own graph computes from its own content**, before it is
served, and again when it changes. A reading that was right for another weight is only a guess which one to compare first.

The reason: dequantization code may contain anything whose effect depends on the size of a number: casts to integers, to float16
or float8, floor division, remainders, comparisons, products that overflow or vanish on the way, s / s at 0. Code that gives q * s
for one layer's scales gives something else for the next layer's. No list of harmless operators is safe, because overflow and
rounding to nothing make nearly all of them depend on magnitude; and comparing costs no more than one eager forward does, which
dequantizes the same weight (in strips of rows that stay in the cache, without ever holding a dense weight).

Compared are two things. What the graph gives, which is rounded, must be the reading's weight up to some roundings of its dtype. And
what the same code gives without rounding (every operator that the codes go through computes in float64) must be the reading's
weight exactly: a small number that is added on the way, or a code that is one too small, can hide in the rounding of bfloat16. Of
a large weight only some strips are compared in this second way.

The one exception is the front door's own operator, `qcompile::dequantize_packed`: it is defined as this formula, by the same
unpacking that the reading uses, so comparing it with itself would prove nothing (tests compare it with independent code, over all
codes and zero points). Its product is rounded to 16 bits on the way, so where a scale is so large or so small that this rounding is
more than rounding, such a weight is compared, too.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.codebooks import NUMBERS
from qcompile.errors import ReleasedWeightError
from qcompile.formats.proposal import Proposal
from qcompile.graph.nodes import Constant, is_call, is_released, value
from qcompile.graph.slices import Root, Slices, pieces
from qcompile.graph.tracing import Emitter
from qcompile.graph.walk import VIEWS, evaluate, subgraph
from qcompile.kernel import inner_bits
from qcompile.meaning import ALONG_N, BLOCK_SCALE_DTYPES, Operands, all_finite, groups_each, is_permutation, is_signed, scales_of
from qcompile.operators import dequantize_packed
from qcompile.proofs.weight import disagreement, in_range, inexact
from qcompile.recognize.narrowing import Extent
from qcompile.recognize.products import CASTS, Product
from qcompile.weights.recipe import Recipe

# Weights of more elements are compared in strips of about so many: a strip's intermediate results stay in the cache.
_WHOLE, _STRIP = 1 << 21, 1 << 19
_EXACT_STRIPS = 4
_ROOM = 2.0**-90, 2.0**90  # of weights that are scaled after their product
_MOST = 2.0**100  # of any weight
_ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor, torch.ops.aten.rsub.Tensor, torch.ops.aten.addcmul.default)


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of one weight when it was compared with its reading.

    scale_range  size of the least and the largest scale that is not 0; (1, 1) if all are
    zero_range   least and largest zero point, (0, 0) without any
    narrow       the bits that its codes and zero points fit, if they are 4 or fewer, else 0; centred: they are to be moved nearer
                 to 0; straight: its permutation moves nothing (qcompile.recognize.narrowing)
    inner_bits   as in kernel.Site
    """

    scale_range: tuple[float, float]
    zero_range: tuple[int, int]
    scale_dtype: torch.dtype
    narrow: int
    centred: bool
    straight: bool
    inner_bits: int


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A proposal for the weight of one product, to be compared with what the graph computes.

    inputs: nodes whose values `proposal.unpack` takes
    defined: the proposal is the front door's own, which says of its operator what that operator is defined as
    """

    product: Product
    proposal: Proposal
    inputs: tuple[fx.Node, ...]
    defined: bool = False


def examine(claim: Claim, constants: Mapping[fx.Node, Constant]) -> Facts | str:
    """What was seen of the weight, if it is what the claim says for these constants; otherwise what is wrong."""
    known = _by_definition(claim, constants)
    parts = _compared(claim, constants) if known is None else [known]
    try:
        return _seen(claim.proposal, parts)
    except _Wrong as wrong:
        return str(wrong)


def agrees(claim: Claim, feed: Mapping[fx.Node, Tensor], strips: int) -> bool:
    """Whether the claim holds for the contents in `feed`, in the first strips of the weight."""
    proposal = claim.proposal
    parts = itertools.islice(_strips(claim, feed), strips)
    return all(_disagreement(part, proposal) is None for part in parts)


class _Wrong(Exception):  # noqa: N818 - it carries the sentence
    pass


def _seen(proposal: Proposal, parts: Iterable[Operands]) -> Facts:
    """What was seen of the parts of a weight together; raises _Wrong if they cannot be served."""
    extent = Extent(proposal)
    zeros: list[Tensor] = []
    sizes: list[float] = []
    dtype, inner = torch.float32, 0
    for operands in parts:
        if not _are_finite(operands):
            raise _Wrong("its scales hold NaN or infinity")
        if operands.perm is not None and not is_permutation(operands.perm):
            raise _Wrong("its columns are no permutation of the input's")
        extent.add(operands)
        if operands.zeros is not None and operands.zeros.numel():
            zeros += torch.aminmax(operands.zeros)
        sizes += magnitudes(_factors(operands, proposal))
        if operands.offsets is not None:
            shift = scales_of(operands.offsets, operands.outer_offset, groups_each(proposal.group, proposal.outer_group))
            sizes += [size / 256 for size in magnitudes(shift)[1:]]  # beside codes of up to 8 bits
        dtype = operands.scales.dtype
        inner = max(inner, inner_bits(operands.scales, operands.offsets))
    narrow = extent.narrow
    nearer = None if narrow else extent.centred_range
    span = extent.zero_range if narrow else nearer or ((int(min(zeros)), int(max(zeros))) if zeros else (0, 0))
    bits = narrow or proposal.bits
    if bits < 8 and (span[0] < 0 or span[1] > 1 << bits):
        raise _Wrong(f"its zero points {span[0]} .. {span[1]} are outside 0 .. {1 << bits}")
    scale_range = min(sizes, default=1.0), max(sizes, default=1.0)
    return Facts(scale_range, span, dtype, narrow, nearer is not None, extent.in_order, inner)


def _factors(operands: Operands, proposal: Proposal) -> Tensor:
    """The scales of both levels, [N, G]."""
    return scales_of(operands.scales, operands.outer, groups_each(proposal.group, proposal.outer_group))


def _are_finite(operands: Operands) -> bool:
    levels = (operands.scales, operands.outer, operands.offsets, operands.outer_offset)
    return all(level is None or all_finite(level) for level in levels)


def _compared(claim: Claim, constants: Mapping[fx.Node, Constant]) -> Iterator[Operands]:
    """The parts of the weight, each compared with what the graph computes; raises _Wrong at the first that differs."""
    proposal = claim.proposal
    for part in _strips(claim, {node: constant.tensor for node, constant in constants.items()}):
        operands = part.operands
        wrong = _disagreement(part, proposal)
        if wrong is not None and _are_finite(operands):
            raise _Wrong(f"its weight is not what it was read as: {wrong}")
        if proposal.codebook in NUMBERS and not all_finite(operands.codes.view(NUMBERS[proposal.codebook])):
            raise _Wrong("its codes hold NaN or infinity")
        signed = is_signed(
            proposal.bits, zeros=operands.zeros is not None, offsets=operands.offsets is not None, codebook=bool(proposal.codebook)
        )
        if not in_range(operands.codes, proposal.bits, signed):
            raise _Wrong(f"its codes need more than {proposal.bits} bits")
        yield operands


@dataclass(frozen=True, slots=True, eq=False)
class _Strip:
    """Some rows of a weight: what the graph computes, the same without rounding (None: not asked for), and the reading."""

    dense: Tensor
    exact: Tensor | None
    operands: Operands
    adds: bool


def _disagreement(part: _Strip, proposal: Proposal) -> str | None:
    wrong = disagreement(
        part.dense, part.operands, proposal.group, proposal.codebook, adds=part.adds, outer_group=proposal.outer_group
    )
    if wrong is None and part.exact is not None:
        wrong = inexact(part.exact, part.operands, proposal.group, proposal.codebook, proposal.outer_group)
    return wrong


def _strips(claim: Claim, feed: Mapping[fx.Node, Tensor]) -> Iterator[_Strip]:
    """The weight's rows, strip by strip."""
    product, proposal = claim.product, claim.proposal
    n, k, turned = product.n, product.k, product.transposed
    if n * k <= _WHOLE:
        wide, adds = _computed(product.weight, feed)
        dense, *given = evaluate([product.weight, *claim.inputs], feed)
        exact = _exactly(Slices([Root(product.weight, {})], {}, feed, wide), None)
        yield _Strip(_turned(dense, turned), _turned(exact, turned), proposal.unpack(given), adds)
        return
    for node, tensor in feed.items():
        if is_released(tensor):
            raise ReleasedWeightError(str(node.meta.get("constant", node.name)))
    known = {node: Constant("", tensor) for node, tensor in feed.items()}
    copy = Recipe.of([product.weight, *claim.inputs], known)
    made = Emitter()(copy.graph, lambda *given: tuple(proposal.unpack(given)), list(copy.roots[1:]), "unpack")
    inner = {copied: feed[source] for copied, source in zip(copy.inputs, copy.sources, strict=True)}
    weight = Root(copy.roots[0], {"n": 1 if turned else 0})
    there = [index for index, node in enumerate(made) if node is not None]
    roots = [Root(made[index], {"n": 0} if Operands._fields[index] in ALONG_N else {}) for index in there]
    wide, adds = _computed(copy.roots[0], inner)
    slices, exactly = Slices([weight, *roots], {"n": n}, inner), Slices([weight], {"n": n}, inner, wide)
    spans = pieces(n, max(1, _STRIP // k), math.lcm(slices.align("n"), exactly.align("n")))
    looked_at = {round(index * (len(spans) - 1) / (_EXACT_STRIPS - 1)) for index in range(_EXACT_STRIPS)}
    for number, span in enumerate(spans):
        dense, *values = slices.evaluate({"n": span})
        named = dict(zip(there, values, strict=True))
        operands = Operands(*(named.get(index) for index in range(len(made))))  # type: ignore[arg-type]
        exact = _exactly(exactly, span) if number in looked_at else None
        yield _Strip(_turned(dense, turned), _turned(exact, turned), operands, adds)


def _turned(weight: Any, transposed: bool) -> Any:
    return weight.t() if transposed and weight is not None else weight


def _exactly(slices: Slices, span: range | None) -> Tensor | None:
    """The weight without rounding; None where the code looks at the bits of its floats."""
    if slices.wide is None:
        return None
    found: Tensor = slices.evaluate({} if span is None else {"n": span})[0]
    return found


def _computed(weight: fx.Node, feed: Mapping[fx.Node, Tensor]) -> tuple[frozenset[fx.Node] | None, bool]:
    """(the nodes that compute floats from the codes, None if they look at bits of such floats; whether they add floats).

    What is computed from scales and zero points alone keeps its dtype: a scale that was rounded on the way is that rounded scale.
    Only a product of the two that is added (w * s - z * s) is no such thing.
    """
    codes = max(feed, key=lambda node: feed[node].nbytes)
    behind, wide, adds = {codes}, set[fx.Node](), False
    for node in subgraph([weight], set(feed)):
        if behind.isdisjoint(node.all_input_nodes):
            continue
        behind.add(node)
        if not is_call(node, torch.ops.aten.view.dtype):  # bits that are taken for floats stay what they are
            wide.add(node)
        floats = [p for p in node.all_input_nodes if p in behind and isinstance(value(p), Tensor) and value(p).is_floating_point()]
        if (
            is_call(node, torch.ops.aten.view.dtype, dequantize_packed) and floats
        ):  # the front door's operator for numbers of 8 bits
            return None, True
        if is_call(node, *_ADDS) and floats:
            adds = True
            wide.update(*(_product_behind(parent) for parent in node.all_input_nodes if parent not in behind))
    return frozenset(wide), adds


def _product_behind(node: fx.Node) -> list[fx.Node]:
    """The product that a term is, zero point times scale, and what stands between; a term of another kind is what it is."""
    found = [node]
    while is_call(found[-1], *VIEWS, *CASTS, torch.ops.aten.expand.default, torch.ops.aten.permute.default):
        found.append(found[-1].all_input_nodes[0])
    return found if is_call(found[-1], torch.ops.aten.mul.Tensor, torch.ops.aten.div.Tensor) else []


def _by_definition(claim: Claim, constants: Mapping[fx.Node, Constant]) -> Operands | None:
    """The operands of a weight of the front door's operator that needs no comparison; codes of fewer than 8 bits without values.

    None for all other weights.
    """
    proposal = claim.proposal
    root: Any = claim.product.weight
    while is_call(root, torch.ops.aten.permute.default, torch.ops.aten.t.default):
        root = root.args[0]
    if not claim.defined or not is_call(root, dequantize_packed) or any(node not in constants for node in claim.inputs):
        return None
    tensors = [constants[node].tensor for node in claim.inputs]
    operands = without_codes(proposal, tensors)
    if operands is None or not _keeps_its_range(operands, proposal, value(root).dtype):
        return None
    return operands


def without_codes(proposal: Proposal, leaves: Sequence[Tensor]) -> Operands | None:
    """Scales, zero points and order alone, with codes that have a shape but no values; None if something needs the codes.

    Codes of fewer than 8 bits, unpacked from a container, cannot be out of range; unpacking a whole model just to look at its
    scales takes seconds.
    """
    if proposal.bits >= 8 or not leaves:
        return None
    largest = max(leaves, key=lambda leaf: leaf.nbytes)
    try:
        operands = proposal.unpack([leaf.to("meta") if leaf is largest else leaf for leaf in leaves])
    except Exception:  # the reading looks at values
        return None
    small = [item for item in operands[1:] if item is not None]
    return None if any(item.is_meta for item in small) or not operands.codes.is_meta else operands


def magnitudes(tensor: Tensor) -> list[float]:
    """The least and the largest size of an element that is not 0; empty if all are."""
    sizes = tensor.to(torch.float32).abs()
    sizes = sizes[sizes > 0]
    return [float(size) for size in torch.aminmax(sizes)] if sizes.numel() else []


def out_of_range(facts: Facts, factors: Sequence[tuple[Tensor, bool]]) -> str:
    """Why a weight, or one with factors behind its product (tensor, True if it divides), has numbers of a size not to be served.

    Sums of products must have room in float32: kernels add in another order than eager, and may take an offset off the codes. A
    product with factors is computed before it is scaled: there must be room on both sides for inputs of any usual size.
    """
    low, high = facts.scale_range[0], facts.scale_range[1] * 256  # codes have up to 8 bits
    if high > _MOST:
        return f"its scales of up to {facts.scale_range[1]:.3g} leave no room for sums in float32"
    if factors and not (_ROOM[0] <= low and high <= _ROOM[1]):
        return f"its scales of {low:.3g} .. {facts.scale_range[1]:.3g} leave no room for the factor behind its product"
    for tensor, divides in factors:
        wide = tensor.to(torch.float32)
        if not bool(torch.isfinite(1 / wide if divides else wide).all()):
            return "a factor after its product is NaN or infinite"
        least, most = magnitudes(wide) or (1.0, 1.0)
        low, high = (low / most, high / least) if divides else (low * least, high * most)
        if not (_ROOM[0] <= low and high <= _ROOM[1]):
            return f"a factor after its product, of {least:.3g} .. {most:.3g}, takes its scales out of the range of float32"
    return ""


def _keeps_its_range(operands: Operands, proposal: Proposal, dtype: torch.dtype) -> bool:
    """Whether no code times its scale leaves the range of normal numbers of any dtype it is rounded to on the way."""
    least, most = magnitudes(_factors(operands, proposal)) or (
        1.0,
        1.0,
    )
    low, high = least / 2, most * (1 << (proposal.bits + 1))  # / 2: the least step of a code book
    rounded = torch.float32 if operands.scales.dtype in BLOCK_SCALE_DTYPES else operands.scales.dtype
    kinds = [torch.finfo(kind) for kind in {dtype, rounded} if kind.is_floating_point]
    return all(low >= kind.smallest_normal and high <= kind.max for kind in kinds)
