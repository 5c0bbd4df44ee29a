"""`python -m fuzz GENERATOR --minutes 30 --seed 0`: runs cases in child processes, counts what came of them, prints every bad one.

The generators: graphs, kernels, folders, cache_files. A case that ends or hangs a child is named, and the next child goes on
behind it. Exit status 1 if any case was bad.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO

from fuzz import BAD, FINE, GENERATORS

PATIENCE = 300  # seconds for one case
EVERY = 30  # seconds between two lines of progress


class Child:
    """A process that runs the cases `first`, `first + step` and so on, and what it says."""

    def __init__(self, generator: str, first: int, step: int, folder: Path, log: IO[bytes]) -> None:
        # Decisions follow the built-in estimates, so that a seed means the same everywhere.
        env = {**os.environ, "QCOMPILE_MEASURE": "0", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "fuzz.child", generator, str(first), str(step), str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=env)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.rest = b""

    def says(self, patience: float) -> dict[str, object] | None:
        """The next line; None if the child ended, TimeoutError if it says nothing for so long."""
        assert self.process.stdout is not None
        until = time.monotonic() + patience
        while b"\n" not in self.rest:
            chunk = self.process.stdout.read(1 << 16)
            if chunk == b"":
                return None
            if chunk is None:
                if time.monotonic() > until:
                    raise TimeoutError
                time.sleep(0.002)
                continue
            self.rest += chunk
        line, self.rest = self.rest.split(b"\n", 1)
        result: dict[str, object] = json.loads(line)
        return result

    def end(self) -> int:
        self.process.kill()
        return self.process.wait()


class Run:
    """Counts of one generator (the name of its module), until the time is over or `most` seeds are done.

    `jobs` children run side by side; child k takes every `jobs`-th seed from `first + k` on.
    """

    def __init__(self, generator: str, first: int, minutes: float, most: int, jobs: int = 1) -> None:
        self.generator, self.first, self.most, self.jobs = generator, first, most, jobs
        self.name = generator.rpartition(".")[2]
        self.begun = time.monotonic()
        self.until = self.begun + minutes * 60
        self.said = self.begun
        self.counts: Counter[str] = Counter()
        self.seeds = 0
        self.lock = threading.Lock()

    def go(self) -> bool:
        """Whether every case was fine."""
        with tempfile.TemporaryDirectory(prefix="qcompile-fuzz-") as place:
            jobs = [threading.Thread(target=self._job, args=(k, Path(place) / f"job-{k}")) for k in range(self.jobs)]
            for job in jobs:
                job.start()
            for job in jobs:
                job.join()
        self.tell("done")
        return not any(self.counts[kind] for kind in BAD)

    def _job(self, k: int, place: Path) -> None:
        place.mkdir()
        seed = self.first + k
        while self._on(seed):
            seed = self._one_child(seed, place)

    def _on(self, seed: int) -> bool:
        return time.monotonic() < self.until and seed < self.first + self.most

    def _one_child(self, seed: int, place: Path) -> int:
        """Runs cases from `seed` on until the child ends; the seed to go on with."""
        with (place / "stderr").open("w+b") as log:
            child = Child(self.generator, seed, self.jobs, place / "case", log)
            try:
                while self._on(seed):
                    begins = child.says(PATIENCE)
                    answer = child.says(PATIENCE) if begins is not None else None
                    if answer is None:
                        status = child.process.wait()
                        log.seek(0)
                        said = log.read()[-4000:].decode(errors="replace")
                        self._count(seed, "crash", f"the process ended with status {status}\n{said}", 1)
                        return seed + self.jobs
                    self._count(seed, str(answer["kind"]), str(answer["detail"]), int(str(answer["cases"])))
                    seed += self.jobs
            except TimeoutError:
                self._count(seed, "crash", f"nothing for {PATIENCE} s", 1)
                seed += self.jobs
            finally:
                child.end()
        return seed

    def _count(self, seed: int, kind: str, detail: str, cases: int) -> None:
        with self.lock:
            self.seeds += 1
            self.counts[kind] += cases
            if kind in BAD:
                print(f"--- {kind}: python -m fuzz {self.name} --seed {seed} --count 1\n{detail}\n", flush=True)
            if time.monotonic() - self.said > EVERY:
                self.said = time.monotonic()
                self.tell("so far")

    def tell(self, when: str) -> None:
        numbers = ", ".join(
            f"{self.counts[kind]} {kind}" for kind in (*FINE, *BAD) if self.counts[kind] or kind in ("right", "wrong")
        )
        seconds = time.monotonic() - self.begun
        print(
            f"{self.name} {when}: {sum(self.counts.values())} cases, {self.seeds} seeds, {seconds:.0f} s: {numbers}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("generators", nargs="+", choices=GENERATORS)
    parser.add_argument("--minutes", type=float, default=30, help="for each generator")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--count", type=int, default=1 << 62, help="how many seeds at most")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cases side by side (one for each processor)"
    )
    given = parser.parse_args()
    fine = [Run(f"fuzz.{name}", given.seed, given.minutes, given.count, given.jobs).go() for name in given.generators]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
