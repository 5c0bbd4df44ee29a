"""What bench/model.py measures of every way of running a model, ours and others'; apart, so that it needs no transformers."""

import time
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP = 2  # calls after the first one whose times do not count
PROMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Seconds and bytes of one way. decode: each token; prefill: each prompt; peak: from loading on, of the whole process.

    library_bytes: what Python and the libraries hold before that, which is a part of the peak.

    weight_bytes: what one step has to read when weights are packed (the embedding's rows are not read); operations: of one prompt.
    read, wide, octets: the limits of the machine around this run, the best of before and after (bench/gemm.py).
    """

    way: str
    threads: int
    load_s: float
    first_prompt_s: float
    first_token_s: float
    decode: list[float]
    prefill: list[float]
    peak_bytes: int
    library_bytes: int
    weight_bytes: int
    operations: float
    read: float
    wide: float
    octets: float
    summary: str


def seconds(act: Callable[[], None]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
