"""The order in which kernels that can run a layer are preferred, and the sentence for each that comes later."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qcompile.timing.times import ROWS

# A kernel must be quicker by this much to be preferred to one that stands before it in the kernel table: measurements of the same
# thing differ by some percent, and a choice that follows them would be another one in every process.
MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel that can run a layer.

    number     its place in the kernel table; place: in option kernels (0 where that does not rank it)
    predicted  rows of x -> seconds; measured: the same, empty unless it was tuned
    form       equal for kernels that read the same packed tensors, "" if there are none
    rows       of x in this graph, if they are the same in every call; predicted has them, too
    """

    name: str
    number: int
    place: int
    predicted: Mapping[int, float]
    measured: Mapping[int, float] = field(default_factory=lambda: {})
    form: str = ""
    rows: int | None = None


def ordered(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first: as option kernels ranks them, then by time; within MARGIN of the quickest, the kernel table decides.

    Times count for few and many rows alike, because all graphs of a model shall read one packed weight. Among kernels that read
    the same one, the rows of this graph decide.
    """
    tuned = _tuned(candidates)
    result: list[Candidate] = []
    for place in sorted({candidate.place for candidate in candidates}):
        these = [candidate for candidate in candidates if candidate.place == place]
        least = min(_mean(candidate, tuned) for candidate in these)
        near = [candidate for candidate in these if _mean(candidate, tuned) <= least * MARGIN]
        rest = [candidate for candidate in these if candidate not in near]
        result += sorted(near, key=lambda candidate: candidate.number)
        result += sorted(rest, key=lambda candidate: (_mean(candidate, tuned), candidate.number))
    first = result[0]
    best = min((item for item in result if _alike(item, first)), key=lambda item: _here(item, tuned), default=first)
    if _here(best, tuned) * MARGIN < _here(first, tuned):
        result.remove(best)
        result.insert(0, best)
    return result


def why_not(candidate: Candidate, chosen: Candidate) -> str:
    """Why a kernel that could run was not taken: its time against the chosen one's, where they differ most."""
    tuned = _tuned((candidate, chosen))
    mine, theirs = _times(candidate, tuned), _times(chosen, tuned)
    if candidate.place != chosen.place:
        return f"comes after {chosen.name} in option kernels ({_comparison(mine, theirs, 1, chosen, tuned)})"
    if _alike(candidate, chosen) and _here(chosen, tuned) * MARGIN < _here(candidate, tuned):
        times = f"{milliseconds(_here(candidate, tuned))} against {milliseconds(_here(chosen, tuned))} of {chosen.name}"
        return f"slower for the {chosen.rows} rows of this graph: {'measured' if tuned else 'predicted'} {times}"
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


def _tuned(candidates: Sequence[Candidate]) -> bool:
    """Measured times count if all have them: a measured and a predicted one are not comparable."""
    return all(rows in candidate.measured for candidate in candidates for rows in ROWS)


def _times(candidate: Candidate, tuned: bool) -> Mapping[int, float]:
    return candidate.measured if tuned else candidate.predicted


def _alike(left: Candidate, right: Candidate) -> bool:
    """Whether one may stand in for the other in a graph of a fixed number of rows."""
    return left.form != "" and left.form == right.form and left.place == right.place and left.rows is not None


def _here(candidate: Candidate, tuned: bool) -> float:
    """Seconds for the rows of this graph; of measured times, the one for the number of rows that is nearest."""
    rows = candidate.rows or 1
    if not tuned:
        return candidate.predicted[rows]
    return candidate.measured[min(ROWS, key=lambda m: abs(math.log(m / rows)))]


def _mean(candidate: Candidate, tuned: bool) -> float:
    times = _times(candidate, tuned)
    return math.exp(sum(math.log(max(times[rows], 1e-9)) for rows in ROWS) / len(ROWS))
