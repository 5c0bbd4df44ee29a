"""Measures one way of running a checkpoint folder in this process; `bench` starts one process for each, so that memory is its own.

python -m qcompile.cli.measure '{"folder": ..., "way": "qcompile" | "eager" | "inductor", "prompt_tokens": 128, "tokens": 16, ...}'
prints one JSON object on standard output.
"""

import ctypes
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from qcompile.api import compile as compile_model
from qcompile.cli.dense import make_dense
from qcompile.cli.folder import example_inputs, load_model, text_config
from qcompile.reporting.report import report
from qcompile.torch_internals import dynamo

WAYS = ("qcompile", "eager", "inductor")
REPEATS = 5  # the best one counts: everything else that runs on the machine only adds to a time


def resident() -> int:
    """Bytes of memory this process holds now; memory that was freed is given back first where the C library can do that."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return peak()


def peak() -> int:
    """The most bytes of memory this process has held since `forget_peak`, or ever."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Start counting the peak anew, where the system can (Linux, /proc/PID/clear_refs, value 5)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure(
    folder: str, way: str, prompt_tokens: int = 128, tokens: int = 16, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Latencies in milliseconds and memory in bytes; "prefill" and "decode" (per token) for causal models, "forward" for others.

    model_bytes: parameters and buffers as loaded. resident_bytes: held at the end; peak_bytes: the most after loading (compilation
    and runs); both without what Python and the libraries hold before loading. two_largest_bytes: the two largest packed layers
    dense, in bfloat16.
    """
    _load_libraries()
    before = resident()
    model = load_model(Path(folder))
    if way != "qcompile":
        make_dense(model, next(p.dtype for p in model.parameters() if p.is_floating_point()))
        if way == "inductor":
            model.compile(backend="inductor")
    else:
        compile_model(model, **(options or {}))
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    resident()
    forget_peak()
    start = time.perf_counter()
    with torch.inference_mode():
        times = _causal(model, prompt_tokens, tokens) if model.can_generate() else _forward(model, folder, prompt_tokens)
    made = report()
    return {
        "way": way,
        "threads": torch.get_num_threads(),
        **times,
        "total_s": time.perf_counter() - start,
        "model_bytes": held,
        "resident_bytes": resident() - before,
        "peak_bytes": peak() - before,
        "two_largest_bytes": sum(sorted((site.n * site.k * 2 for site in made.sites), reverse=True)[:2]),
        "summary": made.summary if way == "qcompile" else "",
        "unserved": len(made.unserved),
    }


def _load_libraries() -> None:
    """Compile and run a tiny model, so that what Python and the libraries load for any model is there before memory is counted."""
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, vocab_size=8
    )
    library: Any = transformers
    model = library.LlamaForCausalLM(config).eval()
    model.compile(backend="inductor")
    with torch.inference_mode():
        _generate(model, torch.zeros((1, 2), dtype=torch.long, device="cpu"), 2)
    dynamo.reset()


def _generate(model: Any, ids: Tensor, count: int) -> list[float]:
    """Seconds from the start to each of `count` tokens."""
    stamps: list[float] = []

    def stamp(given: Tensor, *_: Any, **__: Any) -> Tensor:
        stamps.append(time.perf_counter())
        return torch.zeros(len(given), dtype=torch.bool, device="cpu")

    start = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        cache_implementation="static",
        pad_token_id=0,
        stopping_criteria=[stamp],
    )
    return [at - start for at in stamps]


def _causal(model: Any, prompt_tokens: int, tokens: int) -> dict[str, float]:
    ids = torch.randint(
        3,
        text_config(model.config).vocab_size,
        (1, prompt_tokens),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.int64,
        device="cpu",
    )
    first = _generate(model, ids, tokens + 1)[-1]
    _generate(model, ids, tokens + 1)
    runs = [_generate(model, ids, tokens + 1) for _ in range(REPEATS)]
    prefill, decode = min(run[0] for run in runs), min((run[-1] - run[0]) / tokens for run in runs)
    return {"first_s": first, "prefill_ms": prefill * 1e3, "decode_ms": decode * 1e3}


def _forward(model: Any, folder: str, prompt_tokens: int) -> dict[str, float]:
    inputs = example_inputs(model, Path(folder), None)
    if model.main_input_name == "input_ids":
        inputs["input_ids"] = inputs["input_ids"][:, :1].expand(1, prompt_tokens).contiguous()
    first = _seconds(lambda: model(**inputs))
    model(**inputs)
    return {"first_s": first, "forward_ms": _best(lambda: model(**inputs)) * 1e3}


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _best(act: Callable[[], object]) -> float:
    return min(_seconds(act) for _ in range(REPEATS))


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
