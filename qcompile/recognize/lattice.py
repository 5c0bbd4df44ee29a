"""Recovers codes from any dequantization code: divided by its scales, the dense weight is integers or entries of a code book.

For a weight W [N, K] and a scale S expanded along K, q = W / S is an integer matrix exactly if S is the scale. The integers need
`bits` bits when every group's span fits, so (codes, zeros) follow from q alone, without knowing the storage.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

import torch
from torch import Tensor

from qcompile.codebooks import CODE_BOOKS, NUMBERS
from qcompile.meaning import all_finite, in_groups, row_pieces, ungrouped, values_of
from qcompile.proofs.weight import rounded_to, tolerance
from qcompile.recognize.scales import Grid, Offset, Scale, further, singles

NARROW = (1, 2, 3, 4)  # widths that codes are kept in where they fit; wider ones in 8 bits
INTEGERS, HALVES = "integers", "halves"
_BOOKS = (*CODE_BOOKS, *NUMBERS)
_SAMPLED_ROWS = 8
_SEVERAL_ROUNDINGS = 2.0**-20  # of float32


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """For hundreds of small steps, which would each wait for the other threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class Found:
    """What the weight is on: `kind` is INTEGERS, HALVES (integers once doubled, so the scale counts half), or the name
    of a code book or of numbers of 8 bits.

    index: number of the candidate that is the group index [K] (act-order). offset: what is added to each group, not taken
    for a zero point; its codes are then unsigned, or (symmetric is False) have the zero point 2^(bits-1) besides.
    """

    scale: Scale
    kind: str
    bits: int
    symmetric: bool
    index: int | None = None
    offset: Offset | None = None

    @property
    def codebook(self) -> str:
        return self.kind if self.kind in _BOOKS else ""

    def scales(self, tensors: Sequence[Tensor], n: int, k: int, device: torch.device, rows: Tensor | None = None) -> Tensor:
        """[N, K / group] from the tensors of the scale's parts, for a dense weight [N, K]; or some rows of it."""
        values = self.scale.values(tensors, n, k, device, rows)
        return values.to(torch.float32) * 0.5 if self.kind == HALVES else values


def codes_and_zeros(
    dense: Tensor, scales: Tensor, found: Found, perm: Tensor | None, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(codes int8 [N, K], zeros int8 [N, G] or None if symmetric) of a weight for which `found` holds."""
    stored = dense if perm is None else dense.index_select(1, perm)
    grouped, k = in_groups(stored.to(torch.float32), found.scale.group), dense.shape[1]
    if offsets is not None:
        grouped = grouped - offsets.to(torch.float32).unsqueeze(-1)
    steps = grouped / _safe(scales).unsqueeze(-1)
    if found.codebook:
        return ungrouped(_entries(steps, found.codebook), k), None
    whole = torch.round(steps)
    if found.symmetric:
        return ungrouped(whole, k).to(torch.int8), None
    if offsets is not None:
        middle = 1 << (found.bits - 1) if found.bits < 8 else -128  # bytes of 0 to 255 as signed ones
        return ungrouped(whole + middle, k).to(torch.int8), torch.full_like(scales, middle, dtype=torch.int8)
    zeros = (-whole.amin(-1)).clamp(min=0.0)
    return ungrouped(whole + zeros.unsqueeze(-1), k).to(torch.int8), zeros.to(torch.int8)


def _safe(scales: Tensor) -> Tensor:
    wide = scales.to(torch.float32)
    return torch.where(wide == 0, torch.ones_like(wide), wide)


def _entries(steps: Tensor, codebook: str) -> Tensor:
    """Code int8 of the nearest entry; of two zeros the one with the same sign. Element by element, without a table."""
    if codebook in NUMBERS:
        return steps.to(NUMBERS[codebook]).view(torch.int8)
    entries = CODE_BOOKS[codebook]
    places = {str(entry): index for index, entry in enumerate(entries)}
    ordered = sorted(places[str(entry)] for entry in set(entries))
    ordered.sort(key=lambda index: entries[index])
    nearest = torch.full_like(steps, ordered[0], dtype=torch.int8)
    for low, high in pairwise(ordered):
        nearest = nearest + (steps > (entries[low] + entries[high]) / 2).to(torch.int8) * (high - low)
    if "0.0" in places and "-0.0" in places:
        zero = torch.where(torch.signbit(steps), places["-0.0"], places["0.0"]).to(torch.int8)
        nearest = torch.where((nearest == places["0.0"]) | (nearest == places["-0.0"]), zero, nearest)
    return nearest


class Weight:
    """A dense weight [N, K] that is compared with scales, first a few rows of it, then all that are given.

    dense: its rows, or those that `rows` names of n; tensors: the candidates for scales and group indices
    """

    def __init__(self, dense: Tensor, tensors: Sequence[Tensor], n: int | None = None, rows: Tensor | None = None) -> None:
        self.dense, self.tensors, self.rows = dense, tensors, rows
        given, self.k = dense.shape
        self.n = given if n is None else n
        self.rounded = rounded_to(dense)
        few = torch.linspace(0, given - 1, min(given, _SAMPLED_ROWS), dtype=torch.float32, device="cpu").long()
        self.sample = dense.index_select(0, few).to(torch.float32)
        self.sampled = few if rows is None else rows[few]
        self._known_orders: dict[int, dict[int, Tensor]] = {}

    def near(self, tried: Iterable[Scale], kind: str) -> list[Found]:
        """What fits a few of the rows, fewest bits first: that is soon known, and most scales are refused by it."""
        found: list[Found] = []
        with one_thread():
            for scale in tried:
                for index in (None, *self._orders(scale.group)):
                    guess = Found(scale, kind, 8, True, index)
                    few = (self._fitted(guess, self.sampled[:count]) for count in (1, self.sampled.numel()))
                    last = list(takewhile(lambda item: item is not None, few))
                    found += last[1:] if len(last) == 2 else []  # type: ignore[arg-type]
        return sorted(found, key=lambda item: item.bits)

    def checked(self, near: Iterable[Found]) -> Iterator[Found]:
        """Those of them that fit all rows, one at a time."""
        for guess in near:
            found = self._fitted(guess, None)
            if found is not None:
                yield found

    def _fitted(self, guess: Found, rows: Tensor | None) -> Found | None:
        """The guess with the bits that the given rows need (None: all there are); None where they are not of its kind."""
        tensors = [self.tensors[part.candidate] for part in guess.scale.parts]
        scales = guess.scales(tensors, self.n, self.k, self.dense.device, self.rows if rows is None else rows)
        perm = None if guess.index is None else self._orders(guess.scale.group)[guess.index]
        if rows is None:
            pieces = list(row_pieces(self.dense.shape[0], self.k))
            parts: Iterable[Tensor] = (self.dense[piece].to(torch.float32) for piece in pieces)
            width = self._width(parts, [scales[piece] for piece in pieces], guess.scale.group, guess.kind, perm)
        else:
            width = self._width([self.sample[: rows.numel()]], [scales], guess.scale.group, guess.kind, perm)
        return None if width is None else replace(guess, bits=width[0], symmetric=width[1])

    def _orders(self, group: int) -> dict[int, Tensor]:
        """Permutations of the candidates that may be a group index: integers [K] that name every group K / G times."""
        groups = self.k // group if self.k % group == 0 else 0
        if groups not in self._known_orders:
            self._known_orders[groups] = {
                number: torch.argsort(tensor.long(), stable=True)
                for number, tensor in enumerate(self.tensors)
                if tensor.dtype in (torch.int32, torch.int64) and tuple(tensor.shape) == (self.k,) and groups > 1
                if _names_groups(tensor, self.k, groups)
            }
        return self._known_orders[groups]

    def _width(
        self, parts: Iterable[Tensor], scales: Iterable[Tensor], group: int, kind: str, perm: Tensor | None
    ) -> tuple[int, bool] | None:
        """(bits, symmetric) of the rows divided by their scales, or None where those are not of this kind."""
        low, high, span = 0, 0, 0
        for rows, factors in zip(parts, scales, strict=True):
            if not all_finite(factors):
                return None
            part = rows if perm is None else rows.index_select(1, perm)
            steps = in_groups(part, group) / _safe(factors)[:, :, None]
            if kind in _BOOKS:
                if not self._in_book(steps, kind):
                    return None
                continue
            whole = torch.round(steps)
            # Halves are rare; only products are believed, whose values are off by their own rounding and not by that of others.
            allowed = self._own_rounding(steps)
            allowed = allowed if kind == HALVES else torch.maximum(allowed, tolerance(steps, 1.0, self.rounded))
            if not bool(((steps - whole).abs() <= allowed.clamp(max=0.5)).all()):
                return None
            low, high = min(low, int(whole.min())), max(high, int(whole.max()))
            least = whole.amin(-1).clamp(max=0)
            span = max(span, int((whole.amax(-1) - least).max()))
            if high - low > 510 or span > 255:
                return None
        return (8 if kind in NUMBERS else 4, True) if kind in _BOOKS else _integer_width(low, high, span)

    def _in_book(self, steps: Tensor, codebook: str) -> bool:
        """Whether every value is an entry, up to its own rounding alone: between entries nothing was subtracted."""
        entries = values_of(_entries(steps, codebook), codebook)
        return bool(((steps - entries).abs() <= self._own_rounding(entries)).all())

    def _own_rounding(self, values: Tensor) -> Tensor:
        """By how much values that are products may be off; in float32 code may have rounded more often than in 16 bits."""
        return torch.maximum(tolerance(values, 0.0, self.rounded), values.abs() * _SEVERAL_ROUNDINGS)


def _integer_width(low: int, high: int, span: int) -> tuple[int, bool] | None:
    """The fewest bits; of the same, without zero points."""
    for bits in NARROW:
        half = 1 << (bits - 1)
        if low >= -half and high < half:
            return bits, True
        if span < 2 * half and low >= -2 * half:
            return bits, False
    return (8, True) if low >= -128 and high <= 127 else None


def findings(
    weight: Weight, sizes: Collection[int] = (), added: Callable[[bool], Iterable[Found]] = lambda _: ()
) -> Iterator[Found]:
    """The ways in which a dense weight lies on the lattice of its scales, with the fewest bits first, then those of code books.

    sizes: numbers that the code mentions, as group sizes that may leave a short last group. added: findings with offsets, of four
    bits or fewer (True) or of more.
    """
    grid = Grid(weight.n, weight.k, sizes)
    with one_thread():
        alone = singles(weight.tensors, grid)
    simple = weight.near(alone, INTEGERS)
    yield from weight.checked(found for found in simple if found.bits <= 4)
    with one_thread():
        others = further(weight.tensors, grid)
    composed = weight.near(others, INTEGERS)
    yield from weight.checked(found for found in composed if found.bits <= 4)
    yield from added(True)
    for kind in CODE_BOOKS:
        yield from weight.checked(weight.near((*alone, *others), kind))
    yield from weight.checked(found for found in (*simple, *composed) if found.bits > 4)
    yield from added(False)
    for kind in (HALVES, *NUMBERS):
        yield from weight.checked(weight.near((*alone, *others), kind))


def _names_groups(index: Tensor, k: int, groups: int) -> bool:
    counts = torch.bincount(index.long().clamp(min=0), minlength=groups)
    return counts.numel() == groups and bool((counts == k // groups).all())
