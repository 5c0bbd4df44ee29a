"""Option tune: times of the kernels that can run a layer, measured for its exact shape and format, and kept."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from qcompile.kernel import Kernel, Site
from qcompile.timing.kept import Kept
from qcompile.timing.machine import quiet
from qcompile.timing.trial import Trial, steady

log = logging.getLogger(__name__)

ROUNDS = 4
DENSE = "dense"
Measured = Mapping[str, Mapping[int, float]]  # kernel name -> rows of x -> seconds


def site_key(site: Site) -> str:
    """The parts of a site that a time depends on."""
    other = ("zero_range", "allow_a8", "act_zero")
    return " ".join(f"{f.name}={getattr(site, f.name)}" for f in fields(site) if f.name not in other)


class Tuner:
    """Asks the kept times first, and measures what is not there.

    Believed, and kept, are only times that came out alike twice while the processor was ours: a thread that has to wait for another
    process costs every kernel the same eight milliseconds or so, and any kernel could come out best.
    """

    def __init__(self, kept: Kept | None, rows: Sequence[int]) -> None:
        self.kept, self.rows = kept, tuple(rows)
        self.known: dict[str, dict[str, dict[int, float]]] = _parsed(kept.load("tuned") if kept is not None else None)
        self.given_up: set[str] = set()

    def times(self, site: Site, kernels: Sequence[Kernel]) -> Measured:
        """Of those kernels that could be timed on a made-up weight of this kind, and of the dense product; {} if disturbed."""
        key = site_key(site)
        known = self.known.get(key, {})
        names = [*(kernel.name for kernel in kernels), DENSE]
        if any(m not in known.get(name, {}) for name in names for m in self.rows):
            if key in self.given_up:
                return {}
            found = self._measured(site, kernels)
            if not found:
                log.warning("not tuned, because other processes use the processor (times must come out alike twice): %s", key)
                self.given_up.add(key)
                return {}
            never = {m: float("inf") for m in self.rows}  # what cannot be timed is not tried again
            known = {**known, **{name: dict(found.get(name, never)) for name in names}}
            self.known[key] = known
            if self.kept is not None:
                self.kept.save("tuned", {**(_raw(self.kept.load("tuned"))), key: _json(known)})
        return _timed({name: known[name] for name in names})

    def kept_times(self, site: Site) -> Measured:
        """What is known of this kind of site; nothing is measured."""
        return _timed(self.known.get(site_key(site), {}))

    def _measured(self, site: Site, kernels: Sequence[Kernel]) -> Measured:
        """All of them, so that they were measured side by side."""
        start = time.perf_counter()
        if not quiet():
            return {}
        trial = Trial(kernels, site, with_dense=True)
        found = steady(lambda: trial.times(self.rows, ROUNDS))
        if not quiet():
            return {}
        if found:
            log.info("tuned %d kernels for %s in %.2f s", len(kernels), site_key(site), time.perf_counter() - start)
        return found


def _timed(known: Measured) -> Measured:
    return {name: row for name, row in known.items() if all(value < float("inf") for value in row.values())}


def _raw(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _json(times: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float | None]]:
    return {name: {str(m): None if s == float("inf") else s for m, s in row.items()} for name, row in times.items()}


def _parsed(given: Any) -> dict[str, dict[str, dict[int, float]]]:
    try:
        return {
            str(site): {
                str(name): {int(m): float("inf") if value is None else float(value) for m, value in row.items()}
                for name, row in rows.items()
            }
            for site, rows in _raw(given).items()
        }
    except (TypeError, ValueError, AttributeError):
        return {}
