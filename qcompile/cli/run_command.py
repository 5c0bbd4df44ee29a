"""`qcompile run FOLDER --prompt TEXT`: generate with a causal model, printing tokens as they come."""

import argparse
import json
import sys
import time
from typing import Any

import torch
from rich.console import Console

from qcompile.api import compile as compile_model
from qcompile.cli.folder import FolderError, load_model, prompt_ids, text_config
from qcompile.cli.options import options_of
from qcompile.reporting.report import Report, report
from qcompile.targets.registry import settings


class Stream:
    """Receives tokens from model.generate, notes when each came, and prints it (as text, or as ids without a tokenizer)."""

    def __init__(self, tokenizer: Any, skip: int, quiet: bool) -> None:
        self.tokenizer, self.quiet, self.skip = tokenizer, quiet, skip
        self.ids: list[int] = []
        self.times: list[float] = []
        self.shown = ""

    def put(self, value: torch.Tensor) -> None:
        if self.skip:  # generate sends the prompt first
            self.skip -= value.numel()
            return
        self.ids += [int(token) for token in value.flatten()]
        self.times.append(time.perf_counter())
        if self.quiet:
            return
        text = self.text()
        # A character may need several tokens; it is printed when it is whole.
        if text.startswith(self.shown) and not text.endswith("\ufffd"):
            sys.stdout.write(text[len(self.shown) :])
            sys.stdout.flush()
            self.shown = text

    def end(self) -> None:
        if not self.quiet:
            sys.stdout.write(self.text()[len(self.shown) :] + "\n")

    def text(self) -> str:
        if self.tokenizer is None:
            return " ".join(str(token) for token in self.ids)
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True))


def run(arguments: argparse.Namespace) -> int:
    options, errors = options_of(arguments), Console(stderr=True)
    settings(options)
    with errors.status(f"loading {arguments.folder}"):
        model = load_model(arguments.folder)
    if not model.can_generate():
        raise FolderError(
            f"{arguments.folder} is a {type(model).__name__}, which generates no text; `qcompile explain` and `bench` take it"
        )
    ids, tokenizer = prompt_ids(arguments.folder, arguments.prompt, text_config(model.config).vocab_size)
    compile_model(model, **options)
    stream = Stream(tokenizer, ids.numel(), arguments.json)
    start = time.perf_counter()
    if not arguments.json:
        errors.print("[dim]compiling; the first tokens take a moment[/]")
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=arguments.tokens,
            do_sample=False,
            streamer=stream,
            pad_token_id=model.generation_config.pad_token_id or 0,
        )
    made = report()
    found = measurements(stream, start, made)
    if arguments.json:
        print(json.dumps({**found, "report": made.to_dict()}, indent=2))
    else:
        speed = found["tokens_per_second"]
        errors.print(f"[dim]{len(stream.ids)} tokens; first after {found['first_token_s']:.1f} s, then {speed:.1f} tokens/s[/]")
        made.print(errors, verbose=arguments.verbose)
    return 1 if made.unserved or not made.sites else 0


def measurements(stream: Stream, start: float, made: Report) -> dict[str, Any]:
    """Tokens, text and speed; the speed counts from the third token on, when everything is compiled."""
    times = stream.times
    settled = times[2:] if len(times) > 3 else times
    elapsed = settled[-1] - settled[0] if len(settled) > 1 else 0.0
    return {
        "tokens": stream.ids,
        "text": stream.text() if stream.tokenizer is not None else None,
        "first_token_s": times[0] - start if times else None,
        "tokens_per_second": (len(settled) - 1) / elapsed if elapsed else 0.0,
        "summary": made.summary,
    }
