"""The order in which kernels that can run a layer are preferred, and the sentence for each that comes later."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qcompile.timing.times import ROWS

# A kernel must be quicker by this much to be preferred to one that stands before it in the kernel table: measurements of the same
# thing differ by some percent, and a choice that follows them would be another one in every process.
MARGIN = 1.1
# Rows for which kernels that read the same packed tensors are compared where the call tells the number of rows.
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel that can run a layer.

    number     its place in the kernel table; place: in option kernels (0 where that does not rank it)
    predicted  rows of x -> seconds; measured: the same, empty unless it was tuned
    form       equal for kernels that read the same packed tensors, "" if there are none
    rows       of x in this graph, if they are the same in every call; predicted has them, too (or STEPS)
    bits       that a code takes when packed
    """

    name: str
    number: int
    place: int
    predicted: Mapping[int, float]
    measured: Mapping[int, float] = field(default_factory=lambda: {})
    form: str = ""
    rows: int | None = None
    bits: int = 4

    @property
    def rank(self) -> tuple[int, int]:
        """What counts before time. A packed weight is what the user came for: a quicker kernel is no reason to widen it."""
        return self.place, self.bits


def ordered(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first: as option kernels ranks them, then by bits of a code, then by time; within MARGIN of the quickest, the kernel
    table decides.

    Times count for few and many rows alike, because all graphs of a model shall read one packed weight. Among kernels that read
    the same one, the rows of this graph decide; `crossing` where each call has its own.
    """
    tuned = _tuned(candidates)
    result: list[Candidate] = []
    for rank in sorted({candidate.rank for candidate in candidates}):
        these = [candidate for candidate in candidates if candidate.rank == rank]
        least = min(_mean(candidate, tuned) for candidate in these)
        near = [candidate for candidate in these if _mean(candidate, tuned) <= least * MARGIN]
        rest = [candidate for candidate in these if candidate not in near]
        result += sorted(near, key=lambda candidate: candidate.number)
        result += sorted(rest, key=lambda candidate: (_mean(candidate, tuned), candidate.number))
    first = result[0]
    if first.rows is not None:
        alike = [item for item in result if same_packed(item, first)] or [first]
        least = min(_here(item, tuned) for item in alike)
        best = min((item for item in alike if _here(item, tuned) <= least * MARGIN), key=lambda item: item.number)
        result.remove(best)
        result.insert(0, best)
    return result


def crossing(few: Candidate, many: Candidate) -> float:
    """The least number of rows from which on `many` is quicker by MARGIN: 1 if it always is, infinity if never.

    Between the numbers of rows whose times are known, the ratio of both times is taken for a power of the number of rows.
    """
    tuned = _tuned((few, many))
    mine, theirs = _times(few, tuned), _times(many, tuned)
    known = sorted(mine.keys() & theirs.keys())
    gains = [math.log(mine[m] / theirs[m]) for m in known]
    margin = math.log(MARGIN)
    if gains[-1] < margin:
        return math.inf
    below = next((place for place in reversed(range(len(known))) if gains[place] < margin), None)
    if below is None:
        return 1
    left, right = math.log(known[below]), math.log(known[below + 1])
    part = (margin - gains[below]) / (gains[below + 1] - gains[below])
    return math.ceil(math.exp(left + (right - left) * part) - 1e-9)


def same_packed(left: Candidate, right: Candidate) -> bool:
    """Whether one may stand in for the other: they read the same packed tensors, and option kernels ranks them alike."""
    return left.form != "" and left.form == right.form and left.place == right.place


def why_not(candidate: Candidate, chosen: Candidate) -> str:
    """Why a kernel that could run was not taken: its time against the chosen one's, where they differ most."""
    tuned = _tuned((candidate, chosen))
    mine, theirs = _times(candidate, tuned), _times(chosen, tuned)
    if candidate.place != chosen.place:
        return f"comes after {chosen.name} in option kernels ({_comparison(mine, theirs, 1, chosen, tuned)})"
    if candidate.bits > chosen.bits:
        return f"would keep codes of {chosen.bits} bits in {candidate.bits} ({_comparison(mine, theirs, 1, chosen, tuned)})"
    if same_packed(candidate, chosen) and chosen.rows is not None:
        slower = _here(chosen, tuned) * MARGIN < _here(candidate, tuned)
        what = "slower" if slower else f"not faster by more than {MARGIN - 1:.0%}, and listed later,"
        times = f"{milliseconds(_here(candidate, tuned))} against {milliseconds(_here(chosen, tuned))} of {chosen.name}"
        return f"{what} for {_count(chosen.rows)} of this graph: {'measured' if tuned else 'predicted'} {times}"
    m = max(ROWS, key=lambda rows: mine[rows] / theirs[rows])
    if _mean(candidate, tuned) > _mean(chosen, tuned) * MARGIN or mine[m] > theirs[m] * MARGIN:
        quicker = min(ROWS, key=lambda rows: mine[rows] / theirs[rows])
        though = f"; faster at M = {quicker}" if mine[quicker] * MARGIN < theirs[quicker] else ""
        return f"slower here: {_comparison(mine, theirs, m, chosen, tuned)}{though}"
    return f"not faster by more than {MARGIN - 1:.0%}, and listed later: {_comparison(mine, theirs, m, chosen, tuned)}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _comparison(mine: Mapping[int, float], theirs: Mapping[int, float], m: int, chosen: Candidate, tuned: bool) -> str:
    how = "measured" if tuned else "predicted"
    return f"{how} {milliseconds(mine[m])} against {milliseconds(theirs[m])} of {chosen.name} (M = {m})"


def _count(rows: int) -> str:
    return "the one row" if rows == 1 else f"the {rows} rows"


def _tuned(candidates: Sequence[Candidate]) -> bool:
    """Measured times count if all have them: a measured and a predicted one are not comparable."""
    return all(rows in candidate.measured for candidate in candidates for rows in ROWS)


def _times(candidate: Candidate, tuned: bool) -> Mapping[int, float]:
    return candidate.measured if tuned else candidate.predicted


def _here(candidate: Candidate, tuned: bool) -> float:
    """Seconds for the rows of this graph; of measured times, the one for the number of rows that is nearest."""
    rows = candidate.rows or 1
    if not tuned:
        return candidate.predicted[rows]
    return candidate.measured[min(ROWS, key=lambda m: abs(math.log(m / rows)))]


def _mean(candidate: Candidate, tuned: bool) -> float:
    times = _times(candidate, tuned)
    return math.exp(sum(math.log(max(times[rows], 1e-9)) for rows in ROWS) / len(ROWS))
