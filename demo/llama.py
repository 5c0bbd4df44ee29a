"""Part two: a Llama-shaped causal model with random weights that generates, in three quantizations."""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import qcompile
from demo import schemes
from demo.screen import CONSOLE, Steps, fresh_start, heading, latency_and_memory, steps
from qcompile.cli.dense import make_dense
from qcompile.meaning import sqnr_db

transformers: Any = import_module("transformers")  # its classes are untyped

# small runs in a minute; 1b has the shape of TinyLlama (1.1 B parameters, 2.2 GB in bfloat16).
SIZES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}
VOCABULARY = {"small": 4096, "1b": 32000}
PROMPT = tuple(range(10, 26))


def float_model(size: str) -> Any:
    """The random model in bfloat16; the same weights every time."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES[size], vocab_size=VOCABULARY[size], max_position_embeddings=2048)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def run(output: Path, size: str, tokens: int, bench: bool) -> None:
    """Quantize, load, compile, generate, compare with the dense model; then latency and memory."""
    heading(f"2  A Llama-shaped model that generates (random weights, --size {size})")
    folders = {name: schemes.folder_of(output, f"llama-{size}", name) for name in schemes.SCHEMES}
    rows: list[tuple[str, ...]] = []
    reports: dict[str, qcompile.Report] = {}
    ids = torch.tensor([PROMPT])
    with steps(len(folders) * (4 + tokens)) as step:
        for name, folder in folders.items():
            step(f"quantizing to {schemes.TITLES[name]}")
            schemes.make(folder, name, lambda: float_model(size))
            step(f"{name}: the dense model's answer")
            wanted = dense_logits(folder, ids)
            step(f"{name}: loading")
            model = schemes.load(folder, "AutoModelForCausalLM")
            step(f"{name}: compiling")
            fresh_start()
            qcompile.compile(model)
            with torch.inference_mode():
                got = model(ids).logits[0]
            made, speed = generate(model, ids, tokens, step, name)
            reports[name] = qcompile.report()
            top = (got.argmax(-1) == wanted.argmax(-1)).float().mean()
            shown = " ".join(str(token) for token in made[:6])
            rows.append((name, f"{sqnr_db(wanted, got):.0f} dB", f"{float(top):.0%}", f"{speed:.1f}", f"{shown} ..."))
            del model
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "logits\nagainst dense", "same\ntop token", "tokens/s", "generated ids"):
        table.add_column(column, justify="left" if column in {"", "generated ids"} else "right", no_wrap=column != "generated ids")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)
    for name, found in reports.items():
        CONSOLE.print()
        CONSOLE.print(f"[bold]{schemes.TITLES[name]}[/]")
        found.print(CONSOLE, refused=name in schemes.EXPLAINED)
    if bench:
        heading("Latency and memory, prompt of 128 tokens, 16 new ones")
        latency_and_memory(folders, prompt_tokens=128, tokens=16)


def dense_logits(folder: Path, ids: Tensor) -> Tensor:
    """Logits [length, vocabulary] of the checkpoint dequantized to a plain dense model, run eagerly."""
    model = qcompile.load(folder)
    make_dense(model, torch.bfloat16)
    with torch.inference_mode():
        logits: Tensor = model(ids).logits[0]
    return logits


class Ticker:
    """A streamer for model.generate that moves the progress bar and notes when each token came."""

    def __init__(self, step: Steps, name: str) -> None:
        self.step, self.name = step, name
        self.times: list[float] = []
        self.ids: list[int] = []

    def put(self, value: Tensor) -> None:
        if value.dim() > 1:  # the prompt
            return
        self.step(f"{self.name}: generating")
        self.times.append(time.perf_counter())
        self.ids += [int(token) for token in value]

    def end(self) -> None:
        """model.generate calls this once at the end."""


def generate(model: Any, ids: Tensor, tokens: int, step: Steps, name: str) -> tuple[list[int], float]:
    """Greedy tokens, and tokens per second from the third on (the first two compile)."""
    ticker = Ticker(step, name)
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
            streamer=ticker,
            pad_token_id=0,
        )
    settled = ticker.times[2:]
    return ticker.ids, (len(settled) - 1) / (settled[-1] - settled[0]) if len(settled) > 1 else 0.0
