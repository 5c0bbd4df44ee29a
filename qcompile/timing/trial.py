"""Runs kernels on made-up weights to time them: cold weights, hot code, kernels in turn, the least of several times."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qcompile.codebooks import NUMBERS
from qcompile.kernel import Kernel, Site
from qcompile.meaning import INNER_DTYPES, Operands, group_count, is_signed
from qcompile.targets.native_ops import missing_ops
from qcompile.weights.memory import retired

log = logging.getLogger(__name__)

COLD_BYTES = 64 << 20  # reading so much leaves little of a weight in the caches
SAME = 1.25  # two measurements of the same thing may differ so much
LONG_SECONDS = 0.03  # a call that takes this long needs no second look
_FEW_OUTPUTS = 64  # of the weight whose calls keep the code hot

Run = Callable[[Tensor], Tensor]
Times = Mapping[str, Mapping[int, float]]  # name of kernel -> rows of x -> seconds


def operands(site: Site) -> Operands:
    """Random constants such as the site describes."""
    generator = torch.Generator().manual_seed(site.n + site.k)
    half = 1 << (site.bits - 1)
    signed = is_signed(site.bits, zeros=not site.symmetric, offsets=site.offset, codebook=bool(site.codebook))
    low = -half if signed or site.bits == 8 else 0
    codes = torch.randint(low, low + 2 * half, (site.n, site.k), generator=generator, dtype=torch.int8, device="cpu")
    if site.codebook in NUMBERS:  # finite ones of usual sizes
        codes = (
            torch.randn(codes.shape, generator=generator, dtype=torch.float32, device="cpu")
            .to(NUMBERS[site.codebook])
            .view(torch.int8)
        )
    outers = group_count(site.k, site.outer_group) if site.outer_group else 1
    unit = 2.0**-7
    outer = torch.full((site.n, outers), unit, dtype=torch.float32, device="cpu") if site.outer else None
    shift = torch.full((site.n, outers), -unit, dtype=torch.float32, device="cpu") if site.outer_offset else None

    def level(dtype: torch.dtype, outer: Tensor | None) -> Tensor:
        if dtype in INNER_DTYPES:
            most = 1 << (site.inner_bits - (dtype is torch.int8))
            return torch.randint(1, most, (site.n, site.groups), generator=generator, dtype=torch.int64, device="cpu").to(dtype)
        steps = torch.rand(site.n, site.groups, generator=generator, dtype=torch.float32, device="cpu") * 0.02 + 0.001
        return (steps if outer is None else steps / unit).to(dtype)

    scales = level(site.scale_dtype, outer)
    offsets = level(site.offset_dtype, shift) if site.offset else None
    scales = scales[:1].expand(scales.shape) if site.rows > 1 else scales
    zeros = None if site.symmetric else torch.full((site.n, site.groups), sum(site.zero_range) // 2, dtype=torch.int8, device="cpu")
    perm = torch.randperm(site.k, generator=generator, dtype=torch.int64, device="cpu") if site.act_order else None
    bias = torch.zeros(site.n, dtype=site.dtype, device="cpu") if site.has_bias else None
    static = torch.tensor([0.05], dtype=site.dtype, device="cpu") if site.activation.is_static else None
    # A power of two: what it adds to the codes of a token of zeros can be subtracted again exactly.
    static_zero = torch.tensor([16.0], dtype=site.dtype, device="cpu") if site.act_zero else None
    return Operands(codes, scales, zeros, perm, bias, static, static_zero, outer, offsets, shift)


def prepared(kernel: Kernel, site: Site, weight: Operands) -> Run:
    """The kernel with the weight packed."""
    packed = kernel.packed(weight, site)
    if kernel.retire_addresses:
        packed = tuple(retired(tensor) for tensor in packed)
    return lambda x: kernel.run(x, packed, site)


def dense(site: Site) -> Run:
    """The same layer with a dense weight."""
    weight = torch.zeros(site.n, site.k, dtype=site.dtype, device="cpu")
    return lambda x: torch.nn.functional.linear(x, weight)


def sweep() -> Callable[[], object]:
    """A function that reads COLD_BYTES of memory, and so drives weights out of the caches."""
    buffer = torch.ones(COLD_BYTES, dtype=torch.uint8, device="cpu")
    if missing_ops() is None:
        return lambda: torch.ops.qcompile.native_probe_read.default(buffer)
    words = buffer.view(torch.int64)
    return words.sum


@dataclass(frozen=True, slots=True)
class Timed:
    """run: what is timed. warm: the same with a small weight, called just before.

    In a model, the code of a kernel, of torch's dispatcher and of the thread pool was used a moment ago, only the weight comes
    from memory. What drives the weight out of the caches drives that out, too: it can double the time of a small product.
    """

    run: Run
    warm: Run | None = None


def least(runs: Mapping[str, Timed], x: Tensor, before: Callable[[], object], rounds: int) -> dict[str, float]:
    """Seconds of the quickest of `rounds` calls of each, in turn, so that a disturbance meets all alike; without failing ones."""
    best: dict[str, float] = {}
    for name, timed in runs.items():
        try:
            timed.run(x)  # first calls prepare what later ones find
            if timed.warm is not None:
                timed.warm(x)
        except Exception as error:  # whatever a foreign library throws
            log.debug("%s cannot be timed: %s: %s", name, type(error).__name__, error)
            continue
        best[name] = float("inf")
    for number in range(rounds):
        for name, so_far in best.items():
            if number and so_far > LONG_SECONDS:
                continue
            timed = runs[name]
            before()
            if timed.warm is not None:
                timed.warm(x)
            start = time.perf_counter()
            timed.run(x)
            best[name] = min(so_far, time.perf_counter() - start)
    return best


class Trial:
    """Kernels with a made-up weight of one kind, ready to be timed; kernels that cannot pack it are left out.

    bandwidth: bytes per second read while they were timed, the most of all moments, as times are the least; 0 before. Memory may
    be twice as fast for one trial as for the next.
    """

    def __init__(self, kernels: Sequence[Kernel], site: Site, *, with_dense: bool = False) -> None:
        self.site, self.before, self.bandwidth = site, sweep(), 0.0
        small = replace(site, n=min(site.n, _FEW_OUTPUTS))
        weight, small_weight = operands(site), operands(small)
        self.runs: dict[str, Timed] = {"dense": Timed(dense(site), dense(small))} if with_dense else {}
        for kernel in kernels:
            try:
                # A kernel that does not take so few outputs is timed without.
                warm = None if kernel.refuses(small) else prepared(kernel, small, small_weight)
                self.runs[kernel.name] = Timed(prepared(kernel, site, weight), warm)
            except Exception as error:  # as above
                log.debug("%s cannot pack for a trial: %s: %s", kernel.name, type(error).__name__, error)

    def times(self, rows: Sequence[int], rounds: int) -> Times:
        """On this machine, with cold weights; "dense" for the dense product."""
        found: dict[str, dict[int, float]] = {}
        with torch.no_grad():
            for m in rows:
                x = torch.randn(m, self.site.k, dtype=torch.float32, device="cpu").to(self.site.dtype)
                for name, value in least(self.runs, x, self._sweep, rounds).items():
                    found.setdefault(name, {})[m] = value
        return found

    def _sweep(self) -> None:
        start = time.perf_counter()
        self.before()
        self.bandwidth = max(self.bandwidth, COLD_BYTES / (time.perf_counter() - start))


def steady(one: Callable[[], Times], tries: int = 4) -> Times:
    """Times that came out alike twice, the smaller ones; {} if something shook them in every try."""
    best = one()
    for _ in range(tries - 1):
        again = one()
        pairs = {name: {m: (taken, again[name][m]) for m, taken in row.items()} for name, row in best.items() if name in again}
        best = {name: {m: min(pair) for m, pair in row.items()} for name, row in pairs.items()}
        if all(max(pair) <= SAME * min(pair) for row in pairs.values() for pair in row.values()):
            return best
    return {}
