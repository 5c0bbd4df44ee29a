"""Activations rounded to floats in front of a product of ours that takes them as they are."""

import torch
from torch import Tensor

from qcompile.float_rounding import FLOAT_KINDS
from qcompile.kernel import Extras, Need, Site


def whole_blocks(site: Site) -> Need:
    """For activations rounded in blocks of K."""
    block = FLOAT_KINDS[site.activation.kind].group if site.activation.to_floats else 0
    return not block or site.k % block == 0, f"rounds activations in blocks of {block}, which do not divide K={site.k}"


def rounded(x: Tensor, extras: Extras, site: Site) -> Tensor:
    """x as the product takes it: rounded to floats, or as it is."""
    if not site.activation.to_floats:
        return x
    kind = FLOAT_KINDS[site.activation.kind].number
    narrow = site.activation.arithmetic == "input"
    y: Tensor = torch.ops.qcompile.native_round_floats.default(x, extras.act_scale, kind, narrow)
    return y


def rounding_bytes(site: Site, m: int) -> float:
    """What rounding x to floats first costs, in bytes that could be read meanwhile."""
    return 8.0 * m * site.k if site.activation.to_floats else 0.0
