"""Measures llama.cpp on a GGUF file in a process of its own, which bench/model.py starts: the tokens of bench/model_run.py.

    python -m bench.peers.llama_cpp '{"file": F, "way": "llama.cpp", "prompt": 512, "context": 256, "tokens": 24, "logits": FILE}'

prints one JSON object: the fields of `Run`. transformers is not imported, so that it is not in this process's memory.
"""

import json
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gemm import limits
from bench.model_times import PROMPTS, WARM_UP, Run, seconds
from qcompile.cli.measure import forget_peak, peak, resident
from qcompile.targets.native_ops import missing_ops

READ = 0  # LLAMA_LOAD_MODE_NONE


class Llama:
    """One sequence of tokens through llama.cpp's own functions."""

    def __init__(self, file: str, room: int, batch: int, threads: int) -> None:
        self.api: Any = import_module("llama_cpp")
        self.silent = self.api.llama_log_callback(lambda *_: None)
        self.api.llama_log_set(self.silent, None)
        self.api.llama_backend_init()
        how = self.api.llama_model_default_params()
        how.load_mode = READ  # mapped, packed weights would be in memory twice: in the file and in the order of this processor
        self.model = self.api.llama_model_load_from_file(file.encode(), how)
        asked = self.api.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_ubatch = room, batch, batch
        asked.n_threads = asked.n_threads_batch = threads
        self.context = self.api.llama_init_from_model(self.model, asked)
        if not (self.model and self.context):
            raise SystemExit(f"llama.cpp cannot load {file}")
        self.width = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def forget(self, start: int) -> None:
        """What follows position `start`."""
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, start, -1)

    def logits(self, ids: list[int]) -> Tensor:
        """Of the last of these tokens, which come after those that are there."""
        tokens = (self.api.llama_token * len(ids))(*ids)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(ids))) != 0:
            raise SystemExit("llama.cpp could not run the tokens")
        row = np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, -1), shape=(self.width,))
        return torch.from_numpy(row.copy())


def measure(file: str, way: str, prompt: int, context: int, tokens: int, logits: str) -> Run:
    weights, operations = sizes(file, prompt)
    import_module("llama_cpp")
    before = limits()
    library = resident()
    forget_peak()
    start = time.perf_counter()
    model = Llama(file, prompt + tokens, prompt, torch.get_num_threads())
    load_s = time.perf_counter() - start
    ids = torch.randint(3, model.width, (1, prompt + tokens), generator=torch.Generator().manual_seed(0))[0].tolist()
    answers: list[Tensor] = []

    def one_prompt() -> None:
        model.forget(0)
        answers[:] = [model.logits(ids[:prompt])]

    first_prompt_s = seconds(one_prompt)
    prefill = [seconds(one_prompt) for _ in range(PROMPTS)]
    model.forget(context)
    decode = []
    for at in range(context, context + tokens):
        begin = time.perf_counter()
        answers.append(model.logits([ids[at]]))
        decode.append(time.perf_counter() - begin)
    most = peak()
    torch.save(torch.stack(answers)[:, None], logits)
    best = before.better(limits())
    return Run(
        way=way,
        threads=torch.get_num_threads(),
        load_s=load_s,
        first_prompt_s=first_prompt_s,
        first_token_s=decode[0],
        decode=decode[1 + WARM_UP :],
        prefill=prefill,
        peak_bytes=most,
        library_bytes=library,
        weight_bytes=weights,
        operations=operations,
        read=best.read,
        wide=best.wide,
        octets=best.bytes,
        summary="",
    )


def sizes(file: str, prompt: int) -> tuple[int, float]:
    """(bytes of all weights that a step reads: everything but the embedding; operations of one prompt)."""
    stored = import_module("gguf").GGUFReader(Path(file)).tensors
    size = sum(int(tensor.n_bytes) for tensor in stored if tensor.name != "token_embd.weight")
    products = sum(int(tensor.n_elements) for tensor in stored if tensor.name.startswith("blk") and len(tensor.shape) == 2)
    head = next(int(tensor.n_elements) for tensor in stored if tensor.name == "output.weight")
    return size, 2.0 * (products * prompt + head)


if __name__ == "__main__":
    if reason := missing_ops():
        raise SystemExit(f"the limits are measured by our C++ kernels: {reason}")
    print(json.dumps(asdict(measure(**json.loads(sys.argv[1])))))
