"""Checks a kernel by value: packed from the real weight and run on a probe, it must equal the canonical operation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qcompile import extremes
from qcompile.graph import Constant, evaluate, hint, value
from qcompile.kernels import Kernel, Site
from qcompile.meaning import ActivationQuant, Operands, Verdict, dequantize, row_pieces, sqnr_db
from qcompile.memory import page_out, trim
from qcompile.pipeline import GraphSite
from qcompile.products import through_views
from qcompile.store import STORE, Recipe

ACCEPT_DB = 40.0
# A kernel that rounds activations in its own way may be this much noisier than the checkpoint's own rounding.
_NOISIER_DB = 1.0
_ROWS = 5
_MOST_ROUNDS = 64
_LEAST_VALUES = 256  # in fewer results, a sum that happens to cancel can make the signal small beside its own rounding


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
    feed = {node: constant.tensor for node, constant in constants.items()}
    wanted: list[Any] = [node for node in operands if node is not None]
    values = iter(evaluate(wanted, feed))
    mine = Operands(*(None if node is None else next(values) for node in operands))  # type: ignore[arg-type]
    x = probe(site)
    try:
        packed = STORE.fetch(recipe, leaves)
        with torch.no_grad():
            y = kernel.call(x, packed, site)
    except Exception as error:  # whatever a foreign library throws: this kernel is not used
        STORE.drop(recipe, leaves)
        return f"failed on a probe: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", None
    if tuple(y.shape) != (*x.shape[:-1], site.n) or y.dtype is not x.dtype:
        return f"gave {y.dtype} {list(y.shape)} on a probe instead of {x.dtype} {[*x.shape[:-1], site.n]}", None
    sqnr = sqnr_db(canonical(x, mine, site, kernel.rounding(site)), y)
    if not sqnr >= ACCEPT_DB:
        STORE.drop(recipe, leaves)
        return f"wrong on a probe: {sqnr:.1f} dB against the canonical operation, at least {ACCEPT_DB:.0f} is asked for", sqnr
    if kernel.rounding(site) != site.activation and not site.activation.is_none:  # none: the user allowed it (allow_a8)
        exact = canonical(x, mine, site, ActivationQuant())
        theirs, ours = sqnr_db(exact, canonical(x, mine, site, site.activation)), sqnr_db(exact, y)
        if ours < theirs - _NOISIER_DB:
            return f"rounds activations worse than the checkpoint asks for: {ours:.1f} dB instead of {theirs:.1f}", sqnr
    if wrong := extremes.objection(kernel, site):
        STORE.drop(recipe, leaves)
        return wrong, sqnr
    return "", sqnr


def verify_rewrite(site: GraphSite, constants: Mapping[fx.Node, Constant]) -> str:
    """Runs the canonical call and the graph it replaced on one input of the traced size; "" if they agree, else a sentence.

    This looks at the whole rewrite (unpacking, scales behind the product, biases, fused parts), whatever built it.
    """
    trim()
    x = site.node.args[0]
    assert isinstance(x, fx.Node)
    source = through_views(x)
    feed: dict[fx.Node, Any] = {node: constant.tensor for node, constant in constants.items()}
    parts = site.parts or (site,)
    roots = [part.original for part in parts] + [part.result for part in parts]
    rounds = []
    for seed in range(_MOST_ROUNDS):
        rounds.append(evaluate(roots, {**feed, source: sample(value(source), seed)}))
        least = min(item.numel() for item in rounds[0])
        if least == 0 or len(rounds) * least >= _LEAST_VALUES:
            break
    for leaf in {leaf for part in parts for leaf in part.leaves}:
        page_out(constants[leaf].tensor)
    values = [torch.stack(items) for items in zip(*rounds, strict=True)]
    for part, before, after in zip(parts, values, values[len(parts) :], strict=False):
        sqnr = sqnr_db(before, after) if bool(before.any()) or bool(after.any()) else float("inf")
        if before.shape != after.shape or before.dtype is not after.dtype:
            return f"the rewrite gives {after.dtype} {list(after.shape[1:])} instead of {before.dtype} {list(before.shape[1:])}"
        if not sqnr >= ACCEPT_DB:
            return f"the rewrite of {part.report.module} is wrong on a probe: {sqnr:.1f} dB, at least {ACCEPT_DB:.0f} is asked for"
    return ""


def sample(like: Tensor, seed: int = 0) -> Tensor:
    """Random values of a fake tensor's shape and dtype."""
    generator = torch.Generator().manual_seed(99 + seed)
    return torch.randn([int(hint(size)) for size in like.shape], generator=generator).to(like.device, like.dtype)


def probe(site: Site) -> Tensor:
    """Random x [M, K] of the site's dtype, with rows of different size; M is 5, or more for few outputs."""
    generator = torch.Generator().manual_seed(4242)
    rows = max(_ROWS, -(-_LEAST_VALUES // max(site.n, 1)))
    sizes = torch.tensor([1.0, 0.25, 4.0, 1.0, 1.0]).repeat(-(-rows // _ROWS))[:rows]
    return (torch.randn(rows, site.k, generator=generator) * sizes[:, None]).to(site.device, site.dtype)


def canonical(x: Tensor, operands: Operands, site: Site, activation: ActivationQuant) -> Tensor:
    """The canonical operation in float32, some rows of the weight at a time: float32 [M, N]."""
    rounded = activation.apply(x, operands.act_scale, operands.act_zero).to(torch.float32)
    if operands.perm is not None:
        rounded = rounded.index_select(-1, operands.perm)
    parts = []
    for part in row_pieces(site.n, site.k):
        zeros = None if operands.zeros is None else operands.zeros[part]
        parts.append(rounded @ dequantize(operands.codes[part], operands.scales[part], zeros, site.group, site.codebook).t())
    y = torch.cat(parts, dim=-1)
    return y if operands.bias is None else y + operands.bias.to(torch.float32)
