"""Attention of few query rows and the dense product of one row: ours, PyTorch's, and the time of reading the bytes, in one run.

    python bench/attention.py

Operands are cold in cache; peers take turns call by call. For every line: the least and the median of each peer in microseconds,
its relative error against float64, and the time that the bytes take at the bandwidth measured in the same run.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from qcompile.hardware import platform
from qcompile.targets import native_attention, native_dense


@dataclass(frozen=True)
class Case:
    """heads, K/V heads, width, length of the cache, keys that the mask lets through, query rows."""

    heads: int
    kv_heads: int
    width: int
    cache: int
    seen: int
    rows: int = 1
    dtype: torch.dtype = torch.bfloat16


CASES = (
    Case(32, 4, 64, 256, 256),
    Case(32, 4, 64, 704, 256),
    Case(32, 4, 64, 704, 700),
    Case(32, 4, 64, 2048, 2048),
    Case(32, 8, 128, 1024, 1024),
    Case(32, 32, 128, 1024, 1024),
    Case(8, 1, 128, 4096, 4096),
    Case(32, 4, 64, 1024, 1024, rows=8),
    Case(32, 4, 64, 1024, 1024, rows=64),
    Case(32, 4, 64, 1024, 1024, dtype=torch.float32),
)
DENSE = ((32000, 2048), (4096, 4096), (1024, 1024))
Peer = Callable[[int], Tensor]


@dataclass(frozen=True)
class Effort:
    """rounds: calls of each peer; cold_bytes: of all sets of operands, so that each is out of the caches when its turn comes."""

    rounds: int
    cold_bytes: int

    def sets(self, size: int) -> int:
        return max(2, min(64, self.cold_bytes // size))


def bandwidth(effort: Effort) -> float:
    """Bytes per second of reading memory with PyTorch's threads, the best of some."""
    blocks = torch.ones(effort.cold_bytes // 8, dtype=torch.int64)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        blocks.max()
        times.append(time.perf_counter() - start)
    return blocks.nbytes / min(times)


def race(peers: dict[str, Peer], sets: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, peers in turns, operands of another set each time."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(rounds):
        for place, (name, peer) in enumerate(peers.items()):
            start = time.perf_counter()
            peer((number * len(peers) + place) % sets)
            times[name].append(time.perf_counter() - start)
    return times


def line(title: str, size: int, speed: float, times: dict[str, list[float]], errors: dict[str, float]) -> str:
    cells = [f"{name} {min(t) * 1e6:.0f} / {statistics.median(t) * 1e6:.0f} ({errors[name]:.0e})" for name, t in times.items()]
    return f"{title:48s} bytes {size / speed * 1e6:5.0f} us | " + " | ".join(cells)


def attention(case: Case, speed: float, effort: Effort) -> str:
    size = 2 * case.kv_heads * case.cache * case.width * case.dtype.itemsize
    sets = effort.sets(size)
    shape = (1, case.kv_heads, case.cache, case.width)
    keys = [torch.randn(shape).to(case.dtype) for _ in range(sets)]
    values = [torch.randn(shape).to(case.dtype) for _ in range(sets)]
    q = torch.randn(1, case.rows, case.heads, case.width).to(case.dtype).transpose(1, 2)
    mask = torch.zeros(1, 1, case.rows, case.cache, dtype=case.dtype)
    mask[..., case.seen :] = -torch.inf
    group, scale = case.heads // case.kv_heads, case.width**-0.5

    def ours(i: int) -> Tensor:
        result: Tensor = torch.ops.qcompile.native_attention(q, keys[i], values[i], mask, scale, False)
        return result

    def repeated(i: int) -> Tensor:
        return F.scaled_dot_product_attention(q, keys[i].repeat_interleave(group, 1), values[i].repeat_interleave(group, 1), mask)

    def grouped(i: int) -> Tensor:
        return F.scaled_dot_product_attention(q, keys[i], values[i], mask, enable_gqa=True)

    def products(i: int) -> Tensor:
        rows = q.reshape(1, case.kv_heads, group * case.rows, case.width)
        bias = mask.expand(1, group, case.rows, case.cache).reshape(1, 1, group * case.rows, case.cache)
        weights = torch.softmax(rows @ keys[i].transpose(-1, -2) * scale + bias, -1)
        return (weights @ values[i]).reshape(1, case.heads, case.rows, case.width)

    peers: dict[str, Peer] = {"ours": ours, "SDPA": grouped, "SDPA repeated": repeated, "products": products}
    wide = [item.double() for item in (q, keys[0], values[0], mask)]
    want = F.scaled_dot_product_attention(wide[0], wide[1], wide[2], wide[3], enable_gqa=True)
    errors = {name: float((peer(0).double() - want).norm() / want.norm()) for name, peer in peers.items()}
    title = f"{case.heads}/{case.kv_heads} x {case.width}, {case.rows} rows, {case.seen} of {case.cache} keys, {case.dtype}"
    return line(title.replace("torch.", ""), size * case.seen // case.cache, speed, race(peers, sets, effort.rounds), errors)


def dense(n: int, k: int, speed: float, effort: Effort) -> str:
    sets = effort.sets(2 * n * k)
    weights = [(torch.randn(n, k) * 0.02).bfloat16() for _ in range(sets)]
    x = torch.randn(1, k).bfloat16()
    peers: dict[str, Peer] = {
        "ours": lambda i: native_dense.call(x, weights[i], None),
        "linear": lambda i: F.linear(x, weights[i]),
        "reading": lambda i: weights[i].view(torch.int64).max(),
    }
    want = x.double() @ weights[0].double().t()
    errors = {name: float((peer(0).double() - want).norm() / want.norm()) for name, peer in peers.items() if name != "reading"}
    times = race(peers, sets, effort.rounds)
    return line(f"dense {n} x {k}, 1 row", 2 * n * k, speed, times, {**errors, "reading": 0.0})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("threads", type=int, nargs="?", default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=40, help="calls of each peer (default 40)")
    parser.add_argument("--cold", type=int, default=256, help="megabytes of operands that calls go through (default 256)")
    given = parser.parse_args()
    reasons = (*native_attention.missing(platform()), *native_dense.missing(platform()))
    if reasons:
        sys.exit("; ".join(reasons))
    torch.set_num_threads(given.threads)
    effort = Effort(given.rounds, given.cold << 20)
    speed = bandwidth(effort)
    print(f"{torch.get_num_threads()} threads, {speed / 1e9:.1f} GB/s read; least / median in microseconds (relative error)")
    for case in CASES:
        print(attention(case, speed, effort), flush=True)
    for n, k in DENSE:
        print(dense(n, k, speed, effort), flush=True)


if __name__ == "__main__":
    main()
