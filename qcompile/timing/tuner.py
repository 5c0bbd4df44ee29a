"""Option tune: times of the kernels that can run a layer, measured for its exact shape and format, and kept."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from qcompile.kernels import Kernel, Site
from qcompile.timing.kept import Kept
from qcompile.timing.trial import Trial

log = logging.getLogger(__name__)

ROUNDS = 7
DENSE = "dense"
Measured = Mapping[str, Mapping[int, float]]  # kernel name -> rows of x -> seconds


def site_key(site: Site) -> str:
    """The parts of a site that a time depends on."""
    plain = replace(site, zero_range=(0, 0), allow_a8=False)
    return " ".join(f"{f.name}={getattr(plain, f.name)}" for f in fields(plain) if f.name not in ("zero_range", "allow_a8"))


class Tuner:
    """Asks the kept times first, and measures what is not there."""

    def __init__(self, kept: Kept | None, rows: Sequence[int]) -> None:
        self.kept, self.rows = kept, tuple(rows)
        self.known: dict[str, dict[str, dict[int, float]]] = _parsed(kept.load("tuned") if kept is not None else None)

    def times(self, site: Site, kernels: Sequence[Kernel]) -> Measured:
        """Of those kernels that could be timed on a made-up weight of this kind, and of the dense product."""
        known = self.known.setdefault(site_key(site), {})
        names = [*(kernel.name for kernel in kernels), DENSE]
        if any(m not in known.get(name, {}) for name in names for m in self.rows):
            start = time.perf_counter()
            # All of them, so that they were measured side by side.
            for name, row in Trial(kernels, site, with_dense=True).times(self.rows, ROUNDS).items():
                known[name] = dict(row)
            for name in names:  # what cannot be timed is not tried again
                known.setdefault(name, {m: float("inf") for m in self.rows})
            log.info("tuned %d kernels for %s in %.2f s", len(kernels), site_key(site), time.perf_counter() - start)
            if self.kept is not None:
                self.kept.save("tuned", {**(_raw(self.kept.load("tuned"))), site_key(site): _json(known)})
        return {name: known[name] for name in names if all(value < float("inf") for value in known[name].values())}


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
