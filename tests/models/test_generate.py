"""transformers' own generate: with the back end named in its CompileConfig and a static cache, and with qcompile.compile."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import compressed_tensors_folder, llama_config, token_ids

import qcompile

transformers_library: Any = transformers
TOKENS = 6


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def models(folder: Path) -> tuple[Any, Any]:
    """The model as transformers loads it (it decompresses: dense weights), and the prepared one.

    float32, because the best two of 128 random logits are closer than bfloat16 rounds.
    """
    path = compressed_tensors_folder(folder, llama_config(num_hidden_layers=3), dtype=torch.float32, bits=4, group=32).path
    dense, packed = (transformers_library.AutoModelForCausalLM.from_pretrained(path).eval() for _ in range(2))
    return dense, qcompile.prepare(packed)


def generated(model: Any, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
    result: torch.Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, **settings
    )
    return result


def test_generate_with_a_compile_config_and_a_static_cache(tmp_path: Path) -> None:
    dense, packed = models(tmp_path)
    config = transformers_library.CompileConfig(backend="qcompile", mode=None, fullgraph=True, options={"rest": "eager"})
    config._compile_all_devices = True  # transformers compiles by itself on accelerators only
    ids = token_ids(packed.config, batch=1)
    want = generated(dense, ids)
    for _ in range(2):
        assert torch.equal(generated(packed, ids, cache_implementation="static", compile_config=config), want)
    rows = qcompile.report().sites
    assert len(rows) == 7 * 3 and all(row.kernel for row in rows)
    assert torch._dynamo.utils.counters["graph_break"] == {}
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    other = token_ids(packed.config, batch=1, length=11, seed=5)
    assert torch.equal(generated(packed, other, cache_implementation="static", compile_config=config), generated(dense, other))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= compiled + 1


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_generate_of_a_compiled_model(tmp_path: Path, cache: str) -> None:
    dense, packed = models(tmp_path)
    ids = token_ids(packed.config, batch=2)
    run = qcompile.compile(packed, rest="eager")
    assert torch.equal(generated(run, ids, cache_implementation=cache), generated(dense, ids))
    rows = qcompile.report().sites
    assert len(rows) == 7 * 3 and all(row.kernel for row in rows)
    assert torch._dynamo.utils.counters["graph_break"] == {}
