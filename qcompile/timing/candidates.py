"""Which of the kernels that can run a layer are quick, as far as that is known: the candidates, best first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qcompile.kernel import Kernel, Reasons, Site
from qcompile.targets.registry import selects
from qcompile.timing.order import STEPS, Candidate, crossing, ordered, same_packed
from qcompile.timing.times import ROWS, Times


@dataclass(frozen=True, slots=True)
class Candidates:
    """order: best first; unpredicted: what is against kernels whose time cannot be told, by name.

    few, few_rows: calls of fewer rows than that are quicker in the kernel `few`, which the operator of the first one can run,
    too; "" and 0 where there is none.
    """

    order: Sequence[Candidate]
    unpredicted: Mapping[str, Reasons] = field(default_factory=lambda: {})
    few: str = ""
    few_rows: int = 0


def candidates(site: Site, rows: int | None, able: Mapping[str, Kernel], times: Times, names: tuple[str, ...]) -> Candidates:
    """The kernels of `able` (in order of the kernel table) for a site with so many rows of x, None if each call has its own number.

    names: option kernels, which ranks them.
    """
    found: list[Candidate] = []
    reasons: dict[str, Reasons] = {}
    measured = times.measured(site, list(able.values()))
    for number, kernel in enumerate(able.values()):
        try:
            form = "" if kernel.form is None else kernel.form(site)
            steps = (rows,) if rows is not None else STEPS if form else ()
            predicted = {m: times.predicted(kernel, site, m) for m in (*ROWS, *steps)}
        except Exception as error:  # one target's bug must not take the others with it
            reasons[kernel.name] = (f"its time could not be predicted: {type(error).__name__}: {error}",)
            continue
        places = (place for place, name in enumerate(names) if selects((name,), kernel))
        place, bits = next(places, 0), max(site.bits, kernel.stored_bits)
        found.append(Candidate(kernel.name, number, place, predicted, measured.get(kernel.name, {}), form, rows, bits))
    if not found:
        return Candidates([], reasons)
    order, few, few_rows = _by_rows(ordered(found), able)
    return Candidates(order, reasons, few, few_rows)


def _by_rows(order: list[Candidate], able: Mapping[str, Kernel]) -> tuple[list[Candidate], str, int]:
    """(order, few, few_rows): of the best and one beside it that reads the same packed tensors, each gets the calls it is for."""
    first = order[0]
    alike = {item.name: item for item in order if same_packed(item, first) and item.rows is None}
    for many in alike.values():
        pair = able[many.name].few
        few = alike.get(pair.kernel) if pair is not None else None
        if few is None:
            continue
        rows = crossing(few, many)
        best, other = (few, many) if math.isinf(rows) else (many, few)
        order = [best, other, *(item for item in order if item not in (few, many))]
        return (order, few.name, int(rows)) if 1 < rows < math.inf else (order, "", 0)
    return order, "", 0
