"""Times quantized linears through `qcompile.pack_linear` against the limits of the machine, measured in the same run.

Every kernel that runs here, dense bfloat16, and dense bfloat16 prepacked by oneDNN are called in turn (paired), each time with
another copy of the weight, so that weights come from memory. A loop that only reads as many bytes, from memory, takes its turn
with them: the bandwidth of a shared machine changes within seconds, and a limit is only one beside what ran in the same moments.
The peaks of products hardly change and are measured before and after each row count. A time over its limit
max(bytes read / bandwidth, operations / peak) of 1.0 is perfect, medians over medians, and in brackets 10 % quantiles over 10 %
quantiles; the relative L2 error stands beside it, because a fast wrong kernel is no result. Kernels that round
activations to 8 bit are held against the limit of 8-bit products and stand in a table of their own. With --peers, products of
other projects (bench/peers) take part; they read x from their own kind of tensor, made before anything is timed.

    python bench/gemm.py --shapes 4096x4096 4096x11008 --m 1,2,4,8,16,32,64,128,256,512 --out bench-output/gemm
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where `bench` is, beside a qcompile that was installed elsewhere

import qcompile
from bench.formats import FORMATS, integers, stored_bytes
from bench.peers import LIBRARIES, peers_of
from bench.peers.peer import Peer, copies_of
from qcompile.activations import ActivationQuant
from qcompile.errors import KernelRefusedError
from qcompile.meaning import QuantizedWeight
from qcompile.targets.native_ops import missing_ops
from qcompile.targets.registry import kernels
from qcompile.weights.memory import retired

# With one thread, the processor time of the process: waiting for other processes on a shared machine is then not counted.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
# Threads spin after their work (OpenMP 7 ms, ONNX Runtime 40 ms), on the cores that the threads of another library then need.
SETTLE_S = 0.05
TURNS = 10  # that the peers of one library have before those of the next one
PROBE_BYTES = 256 << 20
PAGE = 4096
READER = "reading alone"
NEVER = ("reference.quantized_linear", "xpu.", "rdna3.")
ROUNDS = ("native.int8", "native.int4_a8", "zentorch.dynamic_qlinear", "torch.qlinear_int8")
TOKEN = ActivationQuant("token", 127.0, -127)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes per second read, operations per second of bfloat16 (or the best wide product) and of bytes."""

    read: float
    wide: float
    bytes: float

    def better(self, other: "Limits") -> "Limits":
        """The best of two measurements."""
        return Limits(max(self.read, other.read), max(self.wide, other.wide), max(self.bytes, other.bytes))

    def seconds(self, size: int, operations: float, *, rounds: bool) -> float:
        return max(size / self.read, operations / (self.bytes if rounds else self.wide))


@dataclass(frozen=True, slots=True)
class Row:
    """One cell: median and 10 % quantile of the times and of the limit, in seconds, and the error of the result."""

    format: str
    kernel: str
    n: int
    k: int
    m: int
    median: float
    low: float
    limit: float
    low_limit: float
    error: float
    rounds: bool

    @property
    def ratio(self) -> float:
        return self.median / self.limit

    @property
    def low_ratio(self) -> float:
        return self.low / self.low_limit


def clock() -> Callable[[], float]:
    return CLOCKS["processor" if torch.get_num_threads() == 1 else "wall"]


def measured(call: Callable[[], float], repeats: int) -> float:
    """The best rate of several runs; `call` returns what it did."""
    best, now = 0.0, clock()
    for _ in range(repeats):
        start = now()
        done = call()
        best = max(best, done / (now() - start))
    return best


def bandwidth(buffer: Tensor | None = None) -> float:
    """Bytes per second read, measured now; buffer: PROBE_BYTES of memory, touched before."""
    given = torch.ones(PROBE_BYTES, dtype=torch.uint8) if buffer is None else buffer

    def read() -> float:
        torch.ops.qcompile.native_probe_read(given)
        return float(given.numel())

    return measured(read, 8)


def peaks() -> tuple[float, float]:
    """Operations per second of the best wide product and of bytes, measured now."""
    ops = torch.ops.qcompile
    wide = measured(lambda: float(ops.native_probe_multiply(False, 20_000)), 60)
    octets = measured(lambda: float(ops.native_probe_multiply(True, 20_000)), 60)
    return wide, octets


def limits() -> Limits:
    """Measured now, with torch's threads, by the loops of csrc/cpu/probe_body.h."""
    wide, octets = peaks()
    return Limits(bandwidth(), wide, octets)


def reader(size: int) -> Peer:
    """What only reads about `size` bytes, on pages as large as those of packed weights."""
    size = size // PAGE * PAGE or PAGE
    buffers = retired(torch.ones(copies_of(size) * size, dtype=torch.uint8)).split(size)

    def read(buffer: Tensor, _: Any) -> Tensor:
        torch.ops.qcompile.native_probe_read(buffer)
        return buffer

    return Peer(READER, [partial(read, buffer) for buffer in buffers], size, False)


def peers(weight: QuantizedWeight, wanted: list[str] | None) -> Iterator[Peer]:
    """Every kernel that takes the weight here, then the dense ones; reasons of the others are printed."""
    size = stored_bytes(weight)
    for name in kernels():
        if name.startswith(NEVER) or (wanted and not name.startswith(tuple(wanted))):
            continue
        rounds = name in ROUNDS
        asked = TOKEN if rounds and weight.bits == 8 else ActivationQuant()
        if weight.bits == 4 and rounds and name != "native.int4_a8":
            continue  # kernels of 8-bit weights would read twice the bytes
        if weight.bits == 4 and name in ("native.int8_a16", "torch.int8pack"):
            continue
        try:
            copies = [qcompile.pack_linear(weight, name, activation=asked, allow_a8=rounds) for _ in range(copies_of(size))]
        except KernelRefusedError as error:
            print(f"  {name}: {' '.join(str(error).split())}")
            continue
        yield Peer(name, copies, size, rounds)
    if not wanted or "dense" in wanted:
        yield from dense_peers(weight)


def dense_peers(weight: QuantizedWeight) -> Iterator[Peer]:
    """bfloat16 F.linear and oneDNN's with a reordered weight; their own limit is the bytes of a packed weight, as it could be."""
    dense = weight.dequantize(torch.bfloat16)
    plain = [dense.clone() for _ in range(copies_of(dense.numel() * 2))]
    yield Peer("dense", [partial(torch.nn.functional.linear, weight=w) for w in plain], stored_bytes(weight), False)
    if not torch.backends.mkldnn.is_available():
        return
    packed = [torch.ops.mkldnn._reorder_linear_weight(w, 64) for w in plain]

    def call(w: Tensor, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
        return y

    yield Peer("dense prepacked", [partial(call, w) for w in packed], stored_bytes(weight), False)


def time_all(all_peers: list[Peer], given: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    """Times of every peer, called in turn; where threads of another library take over, after a pause and calls that wake them."""
    times: dict[str, list[float]] = {peer.name: [] for peer in all_peers}
    pools = {peer.pool: [other for other in all_peers if other.pool == peer.pool] for peer in all_peers}
    now = clock()
    for done in range(0, repeats, TURNS):
        for group in pools.values():
            if len(pools) > 1:
                time.sleep(SETTLE_S)
                for _ in range(2):
                    for peer in group:
                        peer(given[peer.name])
            for _ in range(min(TURNS, repeats - done)):
                for peer in group:
                    x = given[peer.name]
                    start = now()
                    peer(x)
                    times[peer.name].append(now() - start)
    return times


def middle_and_low(times: list[float]) -> tuple[float, float]:
    """Median and 10 % quantile."""
    ordered = sorted(times)
    return statistics.median(ordered), ordered[len(ordered) // 10]


def bench_weight(
    format: str,
    weight: QuantizedWeight,
    ms: list[int],
    *,
    wanted: list[str] | None,
    foreign: list[str],
    budget: float,
) -> list[Row]:
    n, k = weight.n, weight.k
    all_peers = [*peers(weight, wanted), *peers_of(weight, foreign, torch.get_num_threads())]
    exact = weight.dequantize()
    rows = []
    reading = reader(stored_bytes(weight))
    timed = [reading, *all_peers]
    for m in ms:
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).bfloat16()
        wanted_y = x.float() @ exact.T
        given = {peer.name: peer.ready(x) for peer in timed}
        errors = {peer.name: float((peer(given[peer.name]).float() - wanted_y).norm() / wanted_y.norm()) for peer in all_peers}
        once = sum(min(times) for times in time_all(timed, given, 2).values())
        before = peaks()
        times = time_all(timed, given, max(5, min(200, int(budget / max(once, 1e-6)))))
        wide, octets = map(max, before, peaks())
        middle, low = (Limits(reading.size / seconds, wide, octets) for seconds in middle_and_low(times[READER]))
        print(
            f"{k}x{n} {format}, m={m}, giga per second: read {middle.read / 1e9:.1f} ({low.read / 1e9:.1f}), "
            f"wide {wide / 1e9:.1f}, bytes {octets / 1e9:.1f}"
        )
        for peer in all_peers:
            median, least = middle_and_low(times[peer.name])
            row = Row(
                format=format,
                kernel=peer.name,
                n=n,
                k=k,
                m=m,
                median=median,
                low=least,
                limit=middle.seconds(peer.size, 2.0 * m * n * k, rounds=peer.rounds),
                low_limit=low.seconds(peer.size, 2.0 * m * n * k, rounds=peer.rounds),
                error=errors[peer.name],
                rounds=peer.rounds,
            )
            rows.append(row)
            ratios = f"{row.ratio:6.2f} ({row.low_ratio:5.2f}) x limit"
            print(f"  m={m:<4} {row.kernel:<32} {row.median * 1e3:9.3f} ms  {ratios}  error {row.error:.1e}")
    return rows


def table(rows: list[Row], *, rounds: bool) -> str:
    """Markdown: geometric mean over shapes of time / limit, by kernel and rows; in brackets of the 10 % quantile; largest error."""
    rows = [row for row in rows if row.rounds == rounds]
    ms = sorted({row.m for row in rows})
    lines = ["| format | kernel | " + " | ".join(f"M={m}" for m in ms) + " | error |", "|---" * (len(ms) + 3) + "|"]
    for name in dict.fromkeys((row.format, row.kernel) for row in rows):
        mine = [row for row in rows if (row.format, row.kernel) == name]
        cells = []
        for m in ms:
            cell = [row for row in mine if row.m == m]
            ratios = (
                statistics.geometric_mean([row.ratio for row in cell]),
                statistics.geometric_mean([row.low_ratio for row in cell]),
            )
            cells.append(f"{ratios[0]:.2f} ({ratios[1]:.2f})")
        lines.append(f"| {name[0]} | {name[1]} | " + " | ".join(cells) + f" | {max(row.error for row in mine):.0e} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> bool:
    """Time over M against the limit for every kernel; False without matplotlib."""
    try:
        pyplot: Any = import_module("matplotlib.pyplot")
    except ImportError:
        return False
    shapes = list(dict.fromkeys((row.k, row.n, row.format) for row in rows))
    figure, axes = pyplot.subplots(1, len(shapes), figsize=(6 * len(shapes), 5), squeeze=False)
    for axis, (k, n, format) in zip(axes[0], shapes, strict=True):
        axis.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)  # of more colours than the ten of a plain plot
        here = [row for row in rows if (row.k, row.n, row.format) == (k, n, format)]
        for name in dict.fromkeys(row.kernel for row in here):
            mine = [row for row in here if row.kernel == name]
            width = 2.5 if name.startswith("native.") else 1.0
            axis.plot([row.m for row in mine], [row.low * 1e3 for row in mine], marker="o", linewidth=width, label=name)
        for rounds, style in ((False, "k--"), (True, "k:")):
            # Of the fewest bytes: formats differ in those of their scales.
            bounds = [row for row in here if row.rounds == rounds]
            least = {m: min(row.low_limit for row in bounds if row.m == m) * 1e3 for m in sorted({row.m for row in bounds})}
            axis.plot(list(least), list(least.values()), style, label="limit, 8-bit x" if rounds else "limit")
        axis.set(xscale="log", yscale="log", xlabel="rows (M)", ylabel="ms", title=f"K={k} N={n}, {format}")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return True


def _shape(text: str) -> tuple[int, int]:
    k, cross, n = text.partition("x")
    if not (cross and k.isdigit() and n.isdigit()):
        raise argparse.ArgumentTypeError(f"expected KxN, such as 4096x11008 (several with spaces between), got {text!r}")
    return int(k), int(n)


def _weights(given: argparse.Namespace, n: int, k: int) -> Iterator[tuple[str, QuantizedWeight]]:
    if given.format is None:
        group = given.group or (128 if given.bits == 4 else k)
        yield f"int{given.bits} g{group}", integers(n, k, given.bits, group, zeros=given.zeros)
        return
    for name in given.format.split(","):
        yield name, FORMATS[name](n, k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = [(4096, 4096), (4096, 11008), (2048, 8192)]
    parser.add_argument("--shapes", nargs="+", type=_shape, default=shapes, metavar="KxN")
    parser.add_argument("--m", default="1,2,4,8,16,32,64,128,256,512", help="row counts")
    parser.add_argument(
        "--format", help=f"several of {', '.join(FORMATS)} with commas between, instead of --bits, --group and --zeros"
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--group", type=int, default=None, help="default: 128 for 4 bit, K for 8 bit")
    parser.add_argument("--zeros", action="store_true", help="with zero points")
    parser.add_argument("--kernels", nargs="+", help="names or beginnings of names, and 'dense'")
    parser.add_argument("--peers", nargs="*", choices=tuple(LIBRARIES), help="products of other projects (without a name: all)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, default=1.5, help="seconds for each row count of each shape")
    parser.add_argument("--out", type=Path, help="folder for gemm.json, gemm.md and gemm.png")
    given = parser.parse_args()
    if given.format is not None and (unknown := set(given.format.split(",")) - set(FORMATS)):
        parser.error(f"--format: expected {', '.join(FORMATS)}, got {', '.join(sorted(unknown))}")
    if reason := missing_ops():
        raise SystemExit(f"the limits are measured by our C++ kernels: {reason}")
    torch.set_num_threads(given.threads)
    ms = [int(m) for m in given.m.split(",")]
    foreign = list(LIBRARIES) if given.peers == [] else given.peers or []
    rows: list[Row] = []
    with torch.no_grad():
        for k, n in given.shapes:
            for name, weight in _weights(given, n, k):
                rows += bench_weight(name, weight, ms, wanted=given.kernels, foreign=foreign, budget=given.budget)
    text = "Time / limit, median (10 % quantile in brackets), geometric mean over shapes.\n\n" + table(rows, rounds=False)
    if any(row.rounds for row in rows):
        text += "\n\nActivations rounded to 8 bit, against the limit of 8-bit products:\n\n" + table(rows, rounds=True)
    print("\n" + text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        facts = {"threads": given.threads, "torch": str(torch.__version__), "rows": [asdict(row) for row in rows]}
        (given.out / "gemm.json").write_text(json.dumps(facts, indent=1))
        (given.out / "gemm.md").write_text(text + "\n")
        if not plot(rows, given.out / "gemm.png"):
            print("no plot: matplotlib is not installed")


if __name__ == "__main__":
    main()
