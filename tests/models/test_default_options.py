"""Models and kinds of call with the default options: nothing raises, and logits and caches are those of the eager model.

Only Inductor's C++ compiler is left out of most cases, for its seconds: graphs are cut, rewritten, stitched and called as always, and
what Inductor would have compiled is interpreted. A few cases at the end compile for real.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from support.packed_linears import packed_linear
from torch import Tensor, fx, nn

import qcompile
from qcompile.meaning import sqnr_db
from qcompile.run.compilation import _boxed

library: Any = transformers
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
IDS = torch.randint(3, 96, (2, 6), generator=torch.Generator().manual_seed(1))
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
KINDS = {"dense": lambda _: False, "partly": lambda number: number % 2 == 0, "quantized": lambda _: True}
LEAST_DB = 25.0

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def llama(layers: int, kind: str) -> Any:
    """A bfloat16 Llama in which none, every second or all linears of the layers are packed."""
    torch.manual_seed(0)
    config = library.LlamaConfig(**SIZES, num_hidden_layers=layers, num_key_value_heads=1)
    model = library.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    linears = [name for name, module in model.model.named_modules() if isinstance(module, nn.Linear)]
    for number, name in enumerate(linears):
        if KINDS[kind](number):
            parent, _, last = name.rpartition(".")
            old = model.model.get_submodule(name)
            setattr(model.model.get_submodule(parent), last, packed_linear(old.out_features, old.in_features, path=f"model.{name}"))
    return model


def bert(layers: int) -> Any:
    torch.manual_seed(0)
    return library.BertModel(library.BertConfig(**SIZES, num_hidden_layers=layers)).eval()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed over to Inductor runs in the interpreter."""

    def compile_inner(gm: fx.GraphModule, *_: Any, **__: Any) -> Callable[[list[Any]], Any]:
        return _boxed(gm)

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", compile_inner)


def static_cache(model: Any) -> Any:
    return library.StaticCache(config=model.config, max_cache_len=16)


# Each is one call or several; they get the model and return what to compare.
CALLS: dict[str, Callable[[Any], Any]] = {
    "ids": lambda m: m(IDS).logits,
    "no cache": lambda m: m(IDS, use_cache=False).logits,
    "hidden states": lambda m: m(IDS, output_hidden_states=True, use_cache=False).hidden_states,
    "left padding": lambda m: m(IDS, attention_mask=PADDED).logits[:, 2:],
    "position ids": lambda m: m(IDS, position_ids=torch.arange(3, 9)[None].expand(2, 6)).logits,
    "embeddings": lambda m: m(inputs_embeds=m.get_input_embeddings()(IDS), use_cache=False).logits,
    "batches": lambda m: [m(IDS[:1], use_cache=False).logits, m(IDS, use_cache=False).logits, m(IDS[:, :1], use_cache=False).logits],
    "the last logits, as a tuple": lambda m: m(IDS, logits_to_keep=1, return_dict=False)[0],
    "a loss": lambda m: m(IDS, labels=IDS, use_cache=False).loss,
    "a growing cache": lambda m: _steps(m, library.DynamicCache(config=m.config)),
    "a static cache": lambda m: _steps(m, static_cache(m)),
    "inference mode": lambda m: torch.inference_mode()(m)(IDS, use_cache=False).logits.clone(),
    "greedy": lambda m: m.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True).logits[:1],
    "beams": lambda m: m.generate(IDS[:1], max_new_tokens=3, num_beams=2, pad_token_id=0, output_logits=True, return_dict_in_generate=True).logits[:1],
}  # fmt: skip


def _steps(model: Any, cache: Any) -> list[Tensor]:
    """A prompt, two tokens, and what the cache then holds."""
    logits = []
    for start, stop in ((0, 4), (4, 5), (5, 6)):
        at = torch.arange(start, stop)
        logits.append(model(IDS[:, start:stop], past_key_values=cache, cache_position=at).logits)
    return [*logits, cache.layers[-1].keys, cache.layers[0].values]


def check(model: Any, call: Callable[[Any], Any], **options: Any) -> None:
    with torch.no_grad():
        want = call(model)
        got = call(qcompile.compile(model, **options))
    pairs = zip(want, got, strict=True) if isinstance(want, list | tuple) else [(want, got)]
    for left, right in pairs:
        assert left.shape == right.shape and left.dtype is right.dtype
        assert sqnr_db(left, right) >= LEAST_DB
    packed = sum(hasattr(module, "weight_packed") for module in model.modules())
    rows = {row.module: row for row in qcompile.report().sites}
    assert len(rows) == packed and all(row.kernel for row in rows.values())


def some(kind: str) -> list[str]:
    """All kinds of call for a dense model, and each for one of the others: the calls differ in what is around the linears."""
    return list(CALLS) if kind == "dense" else list(CALLS)[kind == "quantized" :: 2]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("kind", "call"), [(kind, call) for kind in KINDS for call in some(kind)])
def test_kinds_of_call(kind: str, call: str) -> None:
    check(llama(3, kind), CALLS[call])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("kind", "layers"), [("dense", 2), ("partly", 2), ("quantized", 2), ("dense", 22), ("partly", 22)])
def test_numbers_of_layers(kind: str, layers: int) -> None:
    check(llama(layers, kind), CALLS["a static cache" if layers == 2 else "no cache"])


@pytest.mark.usefixtures("interpreted")
def test_an_encoder() -> None:
    check(bert(4), lambda m: list(m(IDS, attention_mask=PADDED).to_tuple()))


@pytest.mark.parametrize("kind", ["dense", "partly"])
def test_compiled_for_real(kind: str) -> None:
    check(llama(3, kind), CALLS["no cache"])
