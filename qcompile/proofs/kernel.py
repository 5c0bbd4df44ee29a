"""Checks a kernel by value: packed from the real weight and run on a probe, it must equal the canonical operation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.activations import ActivationQuant
from qcompile.graph.nodes import Constant, aten, is_call, value
from qcompile.graph.slices import Root, Slices, spread
from qcompile.hardware.quiet import without_their_messages
from qcompile.kernel import Kernel, Site
from qcompile.meaning import ALONG_N, Noise, Operands, Verdict, dense_of, row_pieces
from qcompile.proofs import extremes
from qcompile.weights.cache import STORE
from qcompile.weights.memory import trim
from qcompile.weights.recipe import Recipe

ACCEPT_DB = 40.0
# A kernel that rounds activations in its own way may be this much noisier than the checkpoint's own rounding.
_NOISIER_DB = 1.0
_ROWS = 5
# A weight of more elements is looked at in strips of rows of about so many elements each.
MOST, STRIP = 1 << 23, 1 << 19
LEAST_VALUES = 256  # in fewer results, a sum that happens to cancel can make the signal small beside its own rounding


def verify(
    kernel: Kernel,
    site: Site,
    operands: Operands,
    recipe: Recipe,
    leaves: Sequence[Constant],
    constants: Mapping[fx.Node, Constant],
) -> Verdict:
    """("" or the sentence why the kernel must not be used, SQNR in dB against the canonical operation)."""
    trim()  # of what the check before this one left behind
    x = probe(site)
    try:
        with torch.no_grad(), without_their_messages():
            packed = STORE.fetch(recipe, leaves)
            y = kernel.run(x, packed, site)
    except Exception as error:  # whatever a foreign library throws: this kernel is not used
        STORE.drop(recipe, leaves)
        return f"failed on a probe: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", None
    if tuple(y.shape) != (*x.shape[:-1], site.n) or y.dtype is not x.dtype:
        return f"gave {y.dtype} {list(y.shape)} on a probe instead of {x.dtype} {[*x.shape[:-1], site.n]}", None
    own = kernel.rounding(site)
    asked = own != site.activation and not site.activation.is_none  # none: the user allowed it (allow_a8)
    noise, theirs, ours = Noise(x), Noise(), Noise()
    feed = {node: constant.tensor for node, constant in constants.items()}
    for span, part in parts_of(operands, site, feed):
        mine = y[..., span.start : span.stop]
        noise.add(canonical(x, part, site, own), mine, span.start)
        if asked:
            exact = canonical(x, part, site, ActivationQuant())
            theirs.add(exact, canonical(x, part, site, site.activation))
            ours.add(exact, mine)
    sqnr = noise.db
    if noise.lost is not None:
        STORE.drop(recipe, leaves)
        return f"wrong on a probe: output {noise.lost} is not what the canonical operation gives", sqnr
    if not sqnr >= ACCEPT_DB:
        STORE.drop(recipe, leaves)
        return f"wrong on a probe: {sqnr:.1f} dB against the canonical operation, at least {ACCEPT_DB:.0f} is asked for", sqnr
    if asked and ours.db < theirs.db - _NOISIER_DB:
        return f"rounds activations worse than the checkpoint asks for: {ours.db:.1f} dB instead of {theirs.db:.1f}", sqnr
    if wrong := extremes.objection(kernel, site):
        STORE.drop(recipe, leaves)
        return wrong, sqnr
    return "", sqnr


def parts_of(operands: Operands, site: Site, feed: Mapping[fx.Node, Tensor]) -> Iterator[tuple[range, Operands]]:
    """(outputs, the values of the canonical call's operands for them), all of them or some from the first to the last.

    Of a weight of more elements than MOST some strips of rows are taken, so that memory and time have a bound.
    """
    stacked = _stacked(operands)
    rows = max(1, STRIP // max(site.k, 1))
    begin = 0
    for part in stacked:
        n = int(value(part.codes).shape[0])  # type: ignore[arg-type]
        there = [node for node in part if node is not None]
        names = [name for name, node in zip(Operands._fields, part, strict=True) if node is not None]
        axes = [{"n": 0} if name in ALONG_N else {} for name in names]
        slices = Slices([Root(node, axis) for node, axis in zip(there, axes, strict=True)], {"n": n}, feed)  # type: ignore[arg-type]
        count = max(2, MOST // (len(stacked) * rows * max(site.k, 1)))
        spans = spread(n, rows, count, slices.align("n")) if n * site.k > MOST // len(stacked) else [range(n)]
        for span in spans:
            values = dict(zip(names, slices.evaluate({"n": span}), strict=True))
            given: Any = [values.get(name) for name in Operands._fields]
            yield range(begin + span.start, begin + span.stop), Operands(*given)
        begin += n


def _stacked(operands: Operands) -> list[Operands]:
    """The operands of each linear that a fused one consists of; of any other its own."""
    if not is_call(operands.codes, aten.cat.default):
        return [operands]
    count = len(operands.codes.args[0])  # type: ignore[attr-defined]
    along = {name: node.args[0] for name in ALONG_N if (node := getattr(operands, name)) is not None}
    if any(not is_call(getattr(operands, name), aten.cat.default) or len(along[name]) != count for name in along):
        return [operands]
    return [operands._replace(**{name: nodes[index] for name, nodes in along.items()}) for index in range(count)]


def probe(site: Site) -> Tensor:
    """Random x [M, K] of the site's dtype, with rows of different size; M is 5, or more for few outputs."""
    generator = torch.Generator().manual_seed(4242)
    rows = max(_ROWS, -(-LEAST_VALUES // max(site.n, 1)))
    sizes = torch.tensor([1.0, 0.25, 4.0, 1.0, 1.0], dtype=torch.float32, device="cpu").repeat(-(-rows // _ROWS))[:rows]
    return (torch.randn(rows, site.k, generator=generator, dtype=torch.float32, device="cpu") * sizes[:, None]).to(
        site.device, site.dtype
    )


def canonical(x: Tensor, operands: Operands, site: Site, activation: ActivationQuant) -> Tensor:
    """The canonical operation in float32, some rows of the weight at a time: float32 [M, N]."""
    rounded = activation.apply(x, operands.act_scale, operands.act_zero).to(torch.float32)
    if operands.perm is not None:
        rounded = rounded.index_select(-1, operands.perm)
    parts = []
    for part in row_pieces(site.n, site.k):
        parts.append(rounded @ dense_of(operands.rows(part), site.group, site.codebook, site.outer_group).t())
    y = torch.cat(parts, dim=-1)
    return y if operands.bias is None else y + operands.bias.to(torch.float32)
