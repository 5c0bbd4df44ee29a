"""Decodes with several ways in turn, a few tokens each, for a machine whose speed changes from minute to minute.

    python bench/turns.py demo-output/llama-1b-w4a16 --ways qcompile llama.cpp --context 256

Every way lives in a process of its own. In each round each of them decodes some tokens while the others wait, after a pause in
which their threads go to sleep; before the round the bandwidth of memory is measured. The ratios are of times of the same round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where `bench` is, beside a qcompile that was installed elsewhere

from bench.gemm import PROBE_BYTES, bandwidth
from bench.model import PEERS, gguf_of
from bench.model_run import WAYS, cache_of, sizes
from bench.peers import llama_cpp
from qcompile.cli.dense import make_dense
from qcompile.cli.folder import load_model
from qcompile.targets.native_ops import missing_ops

PAUSE_S = 0.06  # threads of OpenMP and of llama.cpp spin for milliseconds after their work
WARM_UP = 2  # tokens of each turn whose times do not count


class Way:
    """A process that decodes `each` tokens when asked to."""

    def __init__(self, name: str, folder: Path, context: int, each: int, threads: int) -> None:
        self.name = name
        asked = json.dumps([name, str(folder), context, each])
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--worker", asked, str(folder)]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.weight_bytes = int(self._answer())
        self.rounds: list[float] = []

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: see above")
        return json.loads(line)

    def turn(self) -> None:
        """The median time of a token of this turn is the next of `rounds`."""
        assert self.process.stdin is not None
        time.sleep(PAUSE_S)
        print("go", file=self.process.stdin, flush=True)
        self.rounds.append(statistics.median(self._answer()))


def worker(way: str, folder: str, context: int, each: int) -> None:
    """Load and compile, print the bytes of weights a token needs; then decode whenever a line comes, and print the times."""
    room = context + WARM_UP + each
    start = ours if way in WAYS else theirs
    step, back, size = start(way, Path(folder), context, room)
    back()
    step()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print(json.dumps(size), file=answers, flush=True)
    for _ in sys.stdin:
        back()
        times = []
        for _ in range(WARM_UP + each):
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
        print(json.dumps(times[WARM_UP:]), file=answers, flush=True)


Started = tuple[Callable[[], Any], Callable[[], None], int]


def ours(way: str, folder: Path, context: int, room: int) -> Started:
    """(decode one token, go back to `context`, bytes of weights) of a way of PyTorch."""
    options = WAYS[way]
    model: Any = load_model(folder)
    size, _ = sizes(model)
    if not way.startswith("qcompile"):
        make_dense(model, torch.bfloat16)
    forward: Callable[..., Any] = model.forward if options is None else torch.compile(model.forward, dynamic=False, **options)
    ids = torch.tensor([[5]])
    cache = cache_of(model, room)

    def back() -> None:
        for layer in cache.layers:
            layer.cumulative_length.fill_(context)

    def step() -> None:
        with torch.inference_mode():
            forward(input_ids=ids, past_key_values=cache, logits_to_keep=1)

    return step, back, size


def theirs(_: str, folder: Path, context: int, room: int) -> Started:
    """The same of llama.cpp."""
    file = str(gguf_of(folder))
    model = llama_cpp.Llama(file, room, context, torch.get_num_threads())
    model.logits([5] * context)
    return lambda: model.logits([5]), lambda: model.forget(context), llama_cpp.sizes(file, 1)[0]


def shown(ways: list[Way], reads: list[float]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "tok/s\nmedian (best)", "time / limit\nmedian (best)", f"time / {ways[0].name}\nmedian of rounds"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for way in ways:
        whole = [seconds * read / way.weight_bytes for seconds, read in zip(way.rounds, reads, strict=True)]
        pairs = [mine / first for mine, first in zip(way.rounds, ways[0].rounds, strict=True)]
        table.add_row(
            way.name,
            f"{1 / statistics.median(way.rounds):.1f} ({1 / min(way.rounds):.1f})",
            f"{statistics.median(whole):.2f} ({min(whole):.2f})",
            f"{statistics.median(pairs):.2f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a quantized checkpoint")
    parser.add_argument("--ways", nargs="+", choices=(*WAYS, *PEERS), default=["qcompile", "dense, eager"])
    parser.add_argument("--context", type=int, default=256, help="tokens before the decoded ones (default 256)")
    parser.add_argument("--each", type=int, default=8, help="tokens of a turn (default 8)")
    parser.add_argument("--rounds", type=int, default=40, help="default 40")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        worker(*given.worker)
        return
    if reason := missing_ops():
        raise SystemExit(f"the limits are measured by our C++ kernels: {reason}")
    torch.set_num_threads(given.threads)
    ways = [Way(name, given.folder, given.context, given.each, given.threads) for name in given.ways]
    buffer, reads = torch.ones(PROBE_BYTES, dtype=torch.uint8), list[float]()
    for number in range(given.rounds):
        time.sleep(PAUSE_S)
        reads.append(bandwidth(buffer))
        for way in ways[:: 1 if number % 2 else -1]:
            way.turn()
    Console().print(shown(ways, reads))
    print(f"{min(reads) / 1e9:.1f} to {max(reads) / 1e9:.1f} GB/s read, median {statistics.median(reads) / 1e9:.1f}")


if __name__ == "__main__":
    main()
