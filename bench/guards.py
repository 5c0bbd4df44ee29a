"""Cost per call of noticing changed weights: what a compiled graph with many packed layers spends before its first kernel.

    python bench/guards.py

Prints the least and the median time of the check alone, for 500 constants by default, and its share of a 20 ms step.
"""

import argparse
import statistics
import time

import torch

from qcompile.graph.nodes import Constant
from qcompile.run.runner import Runner

STEP_MS = 20.0
SIZE = 1 << 18  # bytes; raw weights of a real model are cold in cache, which this many are, too
ROUNDS = 300


def main(count: int) -> None:
    graph = torch.fx.Graph()
    tensors = [torch.randint(0, 256, (SIZE,), dtype=torch.uint8) for _ in range(count)]
    watched = {graph.placeholder(f"w{index}"): index for index in range(count)}
    runner = Runner(lambda args: args, [], [], watched, lambda args: args)
    runner.begin([Constant(f"w{index}", tensor) for index, tensor in enumerate(tensors)], [])

    def check() -> None:
        raw = runner.pick(tensors)
        entry = runner.weights.entries[tuple(map(id, raw))]
        assert entry.snapshot.unchanged(raw)

    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        check()
        times.append((time.perf_counter() - start) * 1e3)
    least, median = min(times), statistics.median(times)
    print(f"{count} constants: least {least:.3f} ms, median {median:.3f} ms, {least / STEP_MS:.2%} of a {STEP_MS:.0f} ms step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("constants", type=int, nargs="?", default=500, help="default 500")
    main(parser.parse_args().constants)
