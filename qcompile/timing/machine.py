"""What this machine can do, measured: memory bandwidth, arithmetic rates, and how far each kernel is off what follows from them."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from qcompile.activations import ActivationQuant
from qcompile.hardware import Platform, platform
from qcompile.hardware.cost import dense_seconds
from qcompile.kernel import Kernel, Site
from qcompile.targets.native_ops import missing_ops
from qcompile.timing.trial import Trial, steady

log = logging.getLogger(__name__)

Factors = tuple[tuple[int, float], ...]  # (least rows of x, measured time / predicted time), ascending
ROWS = (1, 8, 64)
MOST = 4.0  # a factor beyond this, or below its inverse, tells of a disturbance rather than of the kernel
QUIET = 0.8  # of the time of all threads must have been spent on a processor
_LIMIT_SECONDS = 0.08  # for each limit
_PROBE_BYTES = 128 << 20
_MULTIPLY_ROUNDS = 200_000
_ROUNDS = 3
_N, _K, _GROUP = 2048, 2048, 128
_TOKEN = ActivationQuant(kind="token", divisor=127.0, low=-127)
# Every kernel is tried on the first of these that it takes.
PROBES = (
    Site(n=_N, k=_K, bits=4, group=_GROUP, scale_dtype=torch.bfloat16),
    Site(n=_N, k=_K, bits=8, group=_K, scale_dtype=torch.bfloat16, activation=_TOKEN),
    Site(n=_N, k=_K, bits=8, group=_K, scale_dtype=torch.bfloat16),
    Site(n=_N, k=_K, bits=4, group=_GROUP, scale_dtype=torch.bfloat16, allow_a8=True),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Limits per second with torch's threads, and factors of kernels by name."""

    bandwidth: float
    bf16_flops: float
    int8_ops: float
    factors: Mapping[str, Factors] = field(default_factory=lambda: {})

    def applied(self, where: Platform) -> Platform:
        return replace(where, bandwidth=self.bandwidth, bf16_flops=self.bf16_flops, int8_ops=self.int8_ops)

    def to_dict(self) -> dict[str, Any]:
        limits = {"bandwidth": self.bandwidth, "bf16_flops": self.bf16_flops, "int8_ops": self.int8_ops}
        return {**limits, "factors": {name: [list(pair) for pair in pairs] for name, pairs in self.factors.items()}}

    @staticmethod
    def parse(given: Any) -> "Machine | None":
        """The inverse of to_dict; None for anything that is not one."""
        try:
            limits = {name: float(given[name]) for name in ("bandwidth", "bf16_flops", "int8_ops")}
            factors = {str(k): tuple((int(m), float(f)) for m, f in pairs) for k, pairs in given["factors"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        numbers = [*limits.values(), *(f for pairs in factors.values() for _, f in pairs)]
        sane = all(math.isfinite(number) and number > 0 for number in numbers) and all(factors.values())
        return Machine(**limits, factors=factors) if sane else None


def measure(where: Platform, kernels: Iterable[Kernel]) -> Machine | None:
    """Takes one to two seconds.

    None without our compiled probes, and while other processes use the processor: a disturbed measurement would be kept, and
    believed, for good.
    """
    if missing_ops() is not None:
        return None
    start = time.perf_counter()
    limits = _limits()
    if limits is None:
        log.info("other processes use the processor: built-in estimates are used, the next process tries to measure again")
        return None
    found: dict[str, Factors] = {}
    waiting = [kernel for kernel in kernels if kernel.target != "reference" and not kernel.missing(where)]
    for site in PROBES:
        these = [kernel for kernel in waiting if not kernel.refuses(site)]
        waiting = [kernel for kernel in waiting if kernel not in these]
        if these:
            # All of a kind or none: a corrected time and one that is not are not comparable.
            attempt = Trial(these, site, with_dense=site is PROBES[0])
            times = steady(partial(attempt.times, ROWS, _ROUNDS))
            here = replace(limits, bandwidth=attempt.bandwidth or limits.bandwidth).applied(where)
            for kernel in these:
                found[kernel.name] = factors_of(predictions_of(kernel, site, here), times.get(kernel.name, {}))
            if site is PROBES[0]:
                found["dense"] = factors_of(partial(dense_seconds, site.n, site.k, where=here), times.get("dense", {}))
    log.info("measured this machine in %.2f s", time.perf_counter() - start)
    return replace(limits, factors={name: factors for name, factors in found.items() if factors})


def predictions_of(kernel: Kernel, site: Site, where: Platform) -> Callable[[int], float]:
    """The kernel's own prediction by rows."""
    return lambda m: kernel.seconds(site, m, where)


def factors_of(seconds: Callable[[int], float], times: Mapping[int, float]) -> Factors:
    """How much longer than predicted (`seconds` for so many rows) something took; none at all if that is beyond reason."""
    pairs = tuple((m, taken / seconds(m)) for m, taken in sorted(times.items()))
    return pairs if all(1 / MOST <= factor <= MOST for _, factor in pairs) else ()


def _limits() -> Machine | None:
    ops = torch.ops.qcompile
    buffer = torch.ones(_PROBE_BYTES, dtype=torch.uint8, device="cpu")

    def multiply(octets: bool) -> float:
        return float(ops.native_probe_multiply.default(octets, _MULTIPLY_ROUNDS))

    def read() -> float:
        ops.native_probe_read.default(buffer)
        return float(_PROBE_BYTES)

    probes = (read, lambda: multiply(False), lambda: multiply(True))
    rates: list[float] = []
    for probe in probes:
        if (found := rate(probe)) is None:
            return None
        rates.append(found)
    bandwidth, wide, octets = rates
    return Machine(bandwidth, wide, octets)


def quiet() -> bool:
    """Whether torch's threads have the processor to themselves now; takes 0.08 s. True where our compiled probes are missing."""
    if missing_ops() is not None:
        return True
    return rate(lambda: float(torch.ops.qcompile.native_probe_multiply.default(False, _MULTIPLY_ROUNDS))) is not None


def rate(
    call: Callable[[], float],
    wall: Callable[[], float] = time.perf_counter,
    processor: Callable[[], float] = time.process_time,
) -> float | None:
    """The best rate of several runs of `call`, which returns what it did with all of torch's threads.

    None if those threads did not have the processor nearly all of the 0.08 s that this takes. (Over all runs: the system adds up
    the time of threads that run elsewhere only every few milliseconds.)
    """
    call()
    threads, begin, used = min(torch.get_num_threads(), platform().cores), wall(), processor()
    best, now = 0.0, begin
    while now - begin < _LIMIT_SECONDS:
        done, before = call(), now
        now = wall()
        best = max(best, done / (now - before))
    return best if processor() - used >= QUIET * threads * (now - begin) else None
