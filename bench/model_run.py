"""Measures one way of running a Llama-shaped checkpoint in a process of its own, which bench/model.py starts.

    python bench/model_run.py '{"folder": F, "way": "qcompile", "prompt": 512, "context": 256, "tokens": 24, "logits": FILE}'

prints one JSON object: the fields of `Run`.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where `bench` is, beside a qcompile that was installed elsewhere

import qcompile
from bench.gemm import limits
from bench.model_times import PROMPTS, WARM_UP, Run, seconds
from qcompile.cli.dense import make_dense
from qcompile.cli.folder import load_model
from qcompile.cli.measure import forget_peak, peak, resident
from qcompile.frontends.linear import FRONT_DOOR_CLASSES
from qcompile.targets.native_ops import missing_ops

# Options of torch.compile for each way; None: eagerly. "dense": the same weights, dequantized to bfloat16.
WAYS: dict[str, dict[str, Any] | None] = {
    "qcompile": {"backend": "qcompile", "options": {"release": True}},
    "qcompile allow_a8": {"backend": "qcompile", "options": {"release": True, "allow_a8": True}},
    "dense, Inductor": {"backend": "inductor"},
    "dense, zentorch": {"backend": "zentorch"},
    "dense, eager": None,
}


def measure(folder: str, way: str, prompt: int, context: int, tokens: int, logits: str) -> Run:
    """Load, compile and run; the logits of the prompt's and of the decoded tokens go to the file `logits`."""
    options = WAYS[way]
    if way == "dense, zentorch":
        import_module("zentorch")  # registers its back end
    before = limits()
    torch._dynamo.config.recompile_limit = 64
    library = resident()
    forget_peak()  # that of the limits
    start = time.perf_counter()
    model = load_model(Path(folder))
    weights, products = sizes(model)
    if not way.startswith("qcompile"):
        make_dense(model, torch.bfloat16)
    load_s = time.perf_counter() - start
    forward: Callable[..., Any] = model.forward
    if options is not None:
        forward = torch.compile(forward, dynamic=False, **options)
    ids = torch.randint(3, model.config.vocab_size, (1, prompt + tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        long = cache_of(model, prompt)
        made: list[Tensor] = []

        def one_prompt() -> None:
            long.reset()
            made[:] = [forward(input_ids=ids[:, :prompt], past_key_values=long, logits_to_keep=1).logits[:, -1]]

        first_prompt_s = seconds(one_prompt)
        prefill = [seconds(one_prompt) for _ in range(PROMPTS)]
        cache = continued(model, long, context, tokens)
        answers, decode = [*made], []
        for at in range(context, context + tokens):
            begin = time.perf_counter()
            answers.append(forward(input_ids=ids[:, at : at + 1], past_key_values=cache, logits_to_keep=1).logits[:, -1])
            decode.append(time.perf_counter() - begin)
    most = peak()
    torch.save(torch.stack(answers).float(), logits)
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
        operations=2.0 * (products * prompt + model.lm_head.weight.numel()),
        read=best.read,
        wide=best.wide,
        octets=best.bytes,
        summary=qcompile.report().summary if way.startswith("qcompile") else "",
    )


def sizes(model: Any) -> tuple[int, int]:
    """(bytes of all weights that a step reads: everything but the embedding; multiplications of one row in the packed layers)."""
    size = sum(item.nbytes for item in model.parameters()) - model.get_input_embeddings().weight.nbytes
    packed = [module.structure for module in model.modules() if isinstance(module, FRONT_DOOR_CLASSES)]
    return size, sum(structure[3] * structure[4] for structure in packed)


def cache_of(model: Any, length: int) -> Any:
    """An empty static cache of that length, its tensors made here and not while a graph is traced."""
    config = model.config
    cache = transformers.StaticCache(config=config, max_cache_len=length)
    width = config.hidden_size // config.num_attention_heads
    cache.early_initialization(1, config.num_key_value_heads, width, torch.bfloat16, torch.device("cpu"))
    return cache


def continued(model: Any, full: Any, context: int, tokens: int) -> Any:
    """A cache with room for `tokens` more that holds the first `context` keys and values of `full`."""
    cache = cache_of(model, context + tokens)
    for there, here in zip(full.layers, cache.layers, strict=True):
        here.keys[:, :, :context] = there.keys[:, :, :context]
        here.values[:, :, :context] = there.values[:, :, :context]
        here.cumulative_length.fill_(context)
    return cache


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    if reason := missing_ops():
        raise SystemExit(f"the limits are measured by our C++ kernels: {reason}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(asdict(measure(**json.loads(sys.argv[1])))))
