"""Says why a weight is not read: what it is stored as or multiplied with that no quantized weight here can be."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, fx

from qcompile.codebooks import CODE_BOOKS, NUMBERS
from qcompile.graph.nodes import aten, is_call, value
from qcompile.meaning import in_groups
from qcompile.proofs.weight import tolerance
from qcompile.recognize.lattice import HALVES, INTEGERS, Weight
from qcompile.recognize.scales import LEAST_GROUP, Grid, Scale, further, singles

GENERAL = "divided by each of its scales the weight does not become integers of 8 bits or fewer"
_LOOKUPS = (aten.index.Tensor, aten.embedding.default, aten.index_select.default, aten.gather.default)
_MOST_ENTRIES = 1 << 16
_WIDEST_VECTOR = 16
_FEW_VALUES = 32
# By how much what is an integer up to a group's offset may look off, in one place and on average (of noise: 0.5 and 0.29).
_OFF_MOST, _OFF_USUALLY = 0.4, 0.1


def reason(weight: Weight, sizes: Collection[int], nodes: Sequence[fx.Node], leaves: Sequence[Tensor]) -> str:
    """The most specific sentence that is true of a weight for which `lattice.find` found nothing.

    nodes: of its cone, leaves first; sizes: numbers that the code mentions
    """
    for found in (
        _stored(weight, nodes),
        _too_wide(weight, leaves),
        _fine_groups(weight, sizes),
        _looked_up(weight, nodes),
        _of_a_scale(weight, sizes),
    ):
        if found:
            return found
    return GENERAL


def _stored(weight: Weight, nodes: Sequence[fx.Node]) -> str:
    """A dtype whose bits are the values themselves."""
    for node in nodes:
        fake = value(node)
        if not isinstance(fake, Tensor) or not fake.dtype.is_floating_point or fake.dtype.itemsize != 1:
            continue
        packs = 2 if fake.dtype is getattr(torch, "float4_e2m1fn_x2", None) else 1
        if fake.numel() * packs == weight.n * weight.k:
            name = str(fake.dtype).removeprefix("torch.")
            if fake.dtype in NUMBERS.values():
                return f"its weight is stored as {name}, but it is not these numbers times scales"
            return f"its weight is stored as {name} (fp{8 // packs} values, not integers), which no kernel here reads"
    return ""


def _too_wide(weight: Weight, leaves: Sequence[Tensor]) -> str:
    for leaf in leaves:
        if leaf.dtype in (torch.int16, torch.int32, torch.int64) and leaf.numel() == weight.n * weight.k:
            low, high = (int(item) for item in torch.aminmax(leaf))
            if high - low > 255:
                return f"its codes lie in {low} .. {high}, which takes more than 8 bits"
    return ""


def _looked_up(weight: Weight, nodes: Sequence[fx.Node]) -> str:
    """A table of values or vectors that the codes are numbers of."""
    known = ", ".join(CODE_BOOKS)
    for node in nodes:
        if not is_call(node, *_LOOKUPS) or not isinstance(node.args[0], fx.Node):
            continue
        table, made = value(node.args[0]), value(node)
        if not table.dtype.is_floating_point or not 2 <= table.shape[0] <= _MOST_ENTRIES or made.numel() != weight.n * weight.k:
            continue
        entries, width = table.shape[0], table.numel() // table.shape[0]
        if width > min(_WIDEST_VECTOR, weight.k - 1):
            continue  # rows of the weight itself in another order
        if width > 1:
            return f"each of its codes names a vector of {width} values (a vector code book), which no kernel here reads"
        return f"its codes name the {entries} values of a table that are no integers times a scale; read are {known}"
    return ""


def _fine_groups(weight: Weight, sizes: Collection[int]) -> str:
    """Scales of very few values each."""
    grid = Grid(weight.n, weight.k, sizes, least=1)
    fine = [scale for scale in (*singles(weight.tensors, grid), *further(weight.tensors, grid)) if 1 < scale.group < LEAST_GROUP]
    for kind in (INTEGERS, *CODE_BOOKS, HALVES):
        for found in weight.near(fine, kind):
            return f"its scales are those of groups of {found.scale.group}, which would take more memory than the dense weight"
    return ""


def _of_a_scale(weight: Weight, sizes: Collection[int]) -> str:
    """What the weight is once divided by one of its scales."""
    tried = singles(weight.tensors, Grid(weight.n, weight.k, sizes))
    divided = [(scale, _steps(weight, scale)) for scale in tried]
    for scale, steps in divided:
        if _whole(weight, steps):
            return f"divided by its scale it is integers in {int(steps.min())} .. {int(steps.max())}, which takes more than 8 bits"
        offset = _offset(steps) if scale.parts else ""
        if offset:
            return offset
    for scale, steps in divided:
        values = _few_values(weight, steps) if scale.parts else []
        if values:
            return (
                f"divided by its scale it has {len(values)} different values, {values[0]:.4g} .. {values[-1]:.4g}, that are no "
                f"integers (a code book); read are {', '.join(CODE_BOOKS)}"
            )
    return ""


def _steps(weight: Weight, scale: Scale) -> Tensor:
    """Some rows divided by a scale: [rows, G, group]; NaN where the scale is 0 or not finite."""
    tensors = [weight.tensors[part.candidate] for part in scale.parts]
    values = scale.values(tensors, weight.n, weight.k, weight.dense.device, weight.sampled).to(torch.float32)
    steps: Tensor = in_groups(weight.sample, scale.group) / values.unsqueeze(-1)
    return steps


def _whole(weight: Weight, steps: Tensor) -> bool:
    """Whether all are integers, as far as the weight's rounding lets that be seen."""
    allowed = tolerance(steps, 1.0, weight.rounded)
    return bool((allowed < 0.25).all()) and bool(((steps - torch.round(steps)).abs() <= allowed).all())


def _offset(steps: Tensor) -> str:
    """Integers up to an offset of each group that is none. Of rounded values most are near integers, not all very near."""
    moved = steps - steps.amin(-1, keepdim=True)
    off = (moved - torch.round(moved)).abs()
    seen = bool((off < _OFF_MOST).all()) and float(off.square().mean().sqrt()) < _OFF_USUALLY
    if not seen or steps.shape[-1] < LEAST_GROUP or not 2 <= float(moved.max()) <= 255:
        return ""
    return "its zero points are no integers (each group has a real offset), and no tensor of its code is that offset"


def _few_values(weight: Weight, steps: Tensor) -> list[float]:
    """The different values, if they are few among many."""
    if not bool(torch.isfinite(steps).all()):
        return []
    flat = steps.flatten().sort().values
    apart = flat.diff() > 2 * tolerance(flat[1:].unsqueeze(-1), 0.0, weight.rounded).squeeze(-1)
    if int(apart.sum()) >= _FEW_VALUES or flat.numel() < 4 * _FEW_VALUES:
        return []
    starts = torch.cat((torch.zeros(1, dtype=torch.long, device="cpu"), apart.nonzero().flatten() + 1))
    ends = torch.cat((starts[1:] - 1, torch.tensor([flat.numel() - 1], dtype=torch.int64, device="cpu")))
    wide = flat[ends] - flat[starts] > 2 * tolerance(flat[ends].unsqueeze(-1), 0.0, weight.rounded).squeeze(-1)
    return [] if bool(wide.any()) else flat[starts].tolist()
