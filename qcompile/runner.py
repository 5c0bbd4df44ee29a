"""The compiled graph as AOTAutograd calls it: swaps raw weights for packed ones, and packs again when a raw weight has changed."""

import logging
import operator
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompile.check import disagreement
from qcompile.errors import ReleasedWeightError
from qcompile.graph import Constant, evaluate
from qcompile.pipeline import Folded, GraphSite
from qcompile.store import STORE

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Packed:
    """One packed input: how it is made and at which positions its raw weights are among the arguments."""

    folded: Folded
    positions: tuple[int, ...]


class Runner:
    """Calls `compiled` with the arguments that are still inputs, then the packed weights.

    Before that it asks whether every raw weight is still the same tensor, at the same version and address. If not, the packed
    weights that depend on it are made again; if that is not possible for the new content, the graph runs as it was captured.
    """

    _boxed_call = True

    def __init__(
        self,
        compiled: Callable[[list[Any]], Any],
        kept: Sequence[int],
        packed: Sequence[Packed],
        watched: dict[int, Constant],
        original: Callable[[list[Any]], Any],
    ) -> None:
        self.compiled = compiled
        self.kept = tuple(kept)
        self.packed = tuple(packed)
        self.tensors = [item.folded.tensor for item in packed]
        self.original = original
        self.positions = tuple(sorted(watched))
        self.paths = [watched[position].path for position in self.positions]
        self.pick = operator.itemgetter(*self.positions) if len(self.positions) > 1 else self._pick_few
        self.broken = False
        self._remember([watched[position].tensor for position in self.positions])

    def _pick_few(self, args: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(args[position] for position in self.positions)

    def _remember(self, raw: Sequence[Tensor]) -> None:
        self.references = [weakref.ref(tensor) for tensor in raw]
        self.versions = [tensor._version for tensor in raw]
        self.addresses = [tensor.data_ptr() for tensor in raw]

    def unchanged(self, raw: Sequence[Tensor]) -> bool:
        """Whether these are the raw weights that the packed ones were made from, with the same content."""
        return (
            [tensor._version for tensor in raw] == self.versions
            and [tensor.data_ptr() for tensor in raw] == self.addresses
            and all(map(operator.is_, raw, [reference() for reference in self.references]))
        )

    def __call__(self, args: list[Any]) -> Any:
        raw = self.pick(args)
        if not self.unchanged(raw):
            self._pack_again(args, raw)
        if self.broken:
            return self.original(args)
        inputs = [args[position] for position in self.kept]
        inputs += self.tensors
        args.clear()
        return self.compiled(inputs)

    def _pack_again(self, args: Sequence[Any], raw: Sequence[Tensor]) -> None:
        log.info("a packed weight's raw tensors changed: packing again")
        self.broken = False
        results: list[Tensor] = []
        checked: set[int] = set()
        for item in self.packed:
            recipe, site = item.folded.recipe, item.folded.site
            leaves = [Constant(path, args[at]) for path, at in zip(recipe.paths, item.positions, strict=True)]
            try:
                results.append(STORE.fetch(recipe, leaves)[item.folded.index])
            except ReleasedWeightError:
                raise
            if id(site) not in checked:
                checked.add(id(site))
                self.broken = self.broken or not still_read(site, dict(zip(self.paths, raw, strict=True)))
        self.tensors = results
        self._remember(raw)
        if self.broken:
            warnings.warn(
                "qcompile: a quantized weight was changed to a content that its packing does not cover; this graph runs unpacked "
                "and slowly from now on. Call torch._dynamo.reset() to compile it again.",
                stacklevel=2,
            )


def still_read(site: GraphSite, by_path: dict[str, Tensor]) -> bool:
    """Whether the accepted reading of a weight also holds for its new content."""
    if site.parts:
        return all(still_read(part, by_path) for part in site.parts)
    recheck = site.recheck
    if recheck is None:
        return True
    weight, transposed, inputs, sources, paths = recheck
    try:
        feed = dict(zip(sources, (by_path[path] for path in paths), strict=True))
        with torch.no_grad():
            dense, *values = evaluate([weight, *inputs], feed)
            operands = site.proposal.unpack(values)
            wrong = disagreement(dense.t() if transposed else dense, operands, site.proposal.group, site.proposal.codebook)
    except Exception:  # new shapes or contents that the code itself rejects
        return False
    return wrong is None and _in_range(operands.codes, site.proposal.bits, operands.zeros is None)


def _in_range(codes: Tensor, bits: int, signed: bool) -> bool:
    if bits == 8 or codes.numel() == 0:
        return True
    low, high = (int(item) for item in torch.aminmax(codes))
    return (-(1 << (bits - 1)) <= low and high < 1 << (bits - 1)) if signed else (low >= 0 and high < 1 << bits)
