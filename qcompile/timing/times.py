"""The times that `choose` weighs: predicted for every kernel, measured where option tune asks for it."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from qcompile.hardware import Platform
from qcompile.hardware.cost import dense_seconds
from qcompile.kernel import Kernel, Site
from qcompile.options import Options, user_cache_folder
from qcompile.targets.registry import kernels
from qcompile.timing.kept import Kept, key_of
from qcompile.timing.machine import Factors, Machine, measure
from qcompile.timing.tuner import DENSE, Measured, Tuner

log = logging.getLogger(__name__)

# Rows of x for which times are weighed: decode, a small batch, prefill. One order for all graphs of a model, because two kernels
# for one weight would keep it in memory twice.
ROWS = (1, 8, 128)
_lock = threading.Lock()
_machines: dict[tuple[str, ...], tuple[Machine | None, Kept]] = {}
_tuners: dict[tuple[str, ...], Tuner] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """where: the platform with its limits; factors: measured corrections of the kernels' own predictions for bfloat16."""

    where: Platform
    factors: Mapping[str, Factors] = field(default_factory=lambda: {})
    tuner: Tuner | None = None

    def predicted(self, kernel: Kernel, site: Site, m: int) -> float:
        """Seconds for m rows."""
        seconds = kernel.seconds(site, m, self.where)
        if site.dtype is not torch.bfloat16:
            return seconds
        return seconds * self._factor(kernel.name, m)

    def dense(self, site: Site, m: int) -> float:
        """Predicted seconds of the same layer with a dense weight of 16 bits."""
        return dense_seconds(site.n, site.k, m, self.where) * self._factor(DENSE, m)

    def _factor(self, name: str, m: int) -> float:
        factors = self.factors.get(name, ((0, 1.0),))
        return next((factor for least, factor in reversed(factors) if least <= m), factors[0][1])

    def measured(self, site: Site, able: Sequence[Kernel]) -> Measured:
        """Seconds by name of kernel (and "dense") and rows, for ROWS; empty without option tune."""
        return self.tuner.times(site, able) if self.tuner is not None and site.device == "cpu" else {}

    def kept(self, site: Site) -> Measured:
        """The same as far as it is known already."""
        return self.tuner.kept_times(site) if self.tuner is not None else {}


def times_for(options: Options, where: Platform) -> Times:
    """Measured limits and factors on this machine's processor; estimates elsewhere and with measure=False. Never raises."""
    if where.simulated or where.device != "cpu" or not (options.measure or options.tune):
        return Times(where)
    try:
        return _measured(options, where)
    except Exception as error:  # a measurement that fails costs precision, not the model
        log.warning("this machine could not be measured, built-in estimates are used: %s: %s", type(error).__name__, error)
        log.debug("measuring", exc_info=True)
        return Times(where)


def _measured(options: Options, where: Platform) -> Times:
    key = key_of(where)
    name = (*key.values(), str(user_cache_folder()), str(options.measure))
    with _lock:
        if name not in _machines:
            kept = Kept(user_cache_folder(), key)
            machine = Machine.parse(kept.load("machine"))
            if machine is None and options.measure:
                machine = measure(where, kernels().values())
                if machine is not None:
                    kept.save("machine", machine.to_dict())
            _machines[name] = machine, kept
        machine, kept = _machines[name]
        if options.tune and name not in _tuners:
            _tuners[name] = Tuner(kept, ROWS)
        times = Times(where) if machine is None or not options.measure else Times(machine.applied(where), machine.factors)
        return Times(times.where, times.factors, _tuners[name]) if options.tune else times
