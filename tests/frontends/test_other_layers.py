"""Quantized layers that are no nn.Linear: what computes one is served as one, of others the weight becomes dense, and nothing stops."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import Checkpoint, awq_folder, compressed_tensors_folder, float_model, gptq_folder, llama_config, token_ids
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import pytorch_utils

import qcompile
from qcompile.errors import UnsupportedSchemeError
from qcompile.frontends import prepared_notes
from qcompile.frontends.linear import GroupedLinear, PackedLinear
from qcompile.frontends.other_layers import transposed
from qcompile.reporting.report import clear


class Spelled(nn.Linear):
    """A linear in other words, as Falcon has it."""

    def forward(self, input: Tensor) -> Tensor:
        product, bias = input @ self.weight.T, self._parameters["bias"]
        return product if bias is None else product + bias


class Doubled(nn.Linear):
    """No linear of its own weight."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * linear(input, self.weight, self.bias)


class Cubed(nn.Module):
    """A layer of no known kind."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, k))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight) ** 3


Base: Any = transformers.LlamaForCausalLM


class Model(Base):  # type: ignore[misc]
    """A Llama, one of whose layers is of another class."""

    kind: type[nn.Module] = Spelled

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        mlp = self.model.layers[1].mlp
        mlp.up_proj = self.kind(64, 128, bias=False) if issubclass(self.kind, nn.Linear) else self.kind(128, 64)
        self.post_init()


class WithSpelled(Model):
    kind = Spelled


class WithDoubled(Model):
    kind = Doubled


class WithCubed(Model):
    kind = Cubed


Conv1D: Any = pytorch_utils.Conv1D
PATH = "model.layers.1.mlp.up_proj"


def folder_of(kind: type[Model], make: Any, folder: Path, **scheme: Any) -> Checkpoint:
    torch.manual_seed(0)
    model: Any = kind(llama_config()).to(torch.float16 if make is not compressed_tensors_folder else torch.bfloat16).eval()
    if kind is WithCubed:  # what a packer sees is a Linear of the same weight
        plain = nn.Linear(64, 128, bias=False, dtype=model.dtype)
        plain.weight.data = model.model.layers[1].mlp.up_proj.weight.data
        model.model.layers[1].mlp.up_proj = plain
    saved: Checkpoint = make(folder, model, **scheme)
    if kind is WithCubed:
        other = Cubed(128, 64)
        other.weight = nn.Parameter(model.model.layers[1].mlp.up_proj.weight.data, requires_grad=False)
        model.model.layers[1].mlp.up_proj = other
    return saved


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(token_ids(model.config)).logits
    return found


def gpt2() -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 128,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return float_model(transformers.GPT2Config(**sizes), torch.float16)


@pytest.mark.parametrize(
    ("module", "answer"),
    [
        (nn.Linear(8, 12), False),
        (Spelled(8, 12), False),
        (Spelled(8, 8, bias=False), False),
        (Conv1D(12, 8), True),
        (Conv1D(8, 8), True),
        (Doubled(8, 12), None),
        (Cubed(12, 8), None),
        (nn.Embedding(12, 8), None),
        (nn.Conv2d(8, 12, 1), None),
        (nn.Bilinear(8, 8, 12), None),
        (nn.Sequential(nn.Linear(8, 12)), None),
    ],
    ids=lambda item: type(item).__name__,
)
def test_who_computes_a_linear(module: nn.Module, answer: bool | None) -> None:
    assert transposed(module) is answer
    assert transposed(module.to("meta")) is answer


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("make", "scheme"), [(gptq_folder, {"act_order": True}), (gptq_folder, {"symmetric": False}), (awq_folder, {})]
)
def test_a_gpt2_runs_packed(make: Any, scheme: dict[str, Any], tmp_path: Path) -> None:
    saved = make(tmp_path, gpt2(), **scheme)
    model = qcompile.load(saved.path)
    assert sum(isinstance(module, GroupedLinear) for module in model.modules()) == 8
    torch.testing.assert_close(logits(model), logits(saved.dense), rtol=1e-2, atol=1e-2)
    clear()
    compiled = qcompile.compile(model, rest="eager", measure=False)
    torch.testing.assert_close(logits(compiled), logits(saved.dense), rtol=1e-2, atol=1e-2)
    assert sum(site.kernel is not None for site in qcompile.report().sites if site.module.startswith("transformer.h")) == 8


@pytest.mark.parametrize("make", [gptq_folder, awq_folder, compressed_tensors_folder])
def test_a_linear_in_other_words_runs_packed(make: Any, tmp_path: Path) -> None:
    saved = folder_of(WithSpelled, make, tmp_path, group=32)
    model = qcompile.load(saved.path, model_class=WithSpelled)
    assert isinstance(model.get_submodule(PATH), GroupedLinear | PackedLinear)
    if saved.dense is not None:
        torch.testing.assert_close(logits(model), logits(saved.dense), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", [WithDoubled, WithCubed])
@pytest.mark.parametrize("make", [gptq_folder, awq_folder])
def test_what_is_no_linear_becomes_dense_and_says_so(kind: type[Model], make: Any, tmp_path: Path) -> None:
    saved = folder_of(kind, make, tmp_path)
    model = qcompile.load(saved.path, model_class=kind)
    module: Any = model.get_submodule(PATH)
    assert type(module) is kind.kind and set(dict(module.named_parameters())) == {"weight"}
    dense: Any = saved.dense.get_submodule(PATH)
    assert bool((module.weight == dense.weight).all())
    assert prepared_notes(model)[PATH] == f"a quantized {kind.kind.__name__}, which is no linear: made dense"
    assert sum(isinstance(other, GroupedLinear) for other in model.modules()) == 13
    torch.testing.assert_close(logits(model), logits(saved.dense), rtol=1e-2, atol=1e-2)


def test_a_compressed_layer_that_is_no_linear_is_the_librarys(tmp_path: Path) -> None:
    saved = folder_of(WithDoubled, compressed_tensors_folder, tmp_path, group=32)
    model = qcompile.load(saved.path, model_class=WithDoubled)
    assert (type(model.get_submodule(PATH)) is Doubled and "made dense" in prepared_notes(model)[PATH]) or (
        "no Linear" in prepared_notes(model)[PATH]
    )
    assert sum(isinstance(other, PackedLinear) for other in model.modules()) == 13
    expected: Any = WithDoubled.from_pretrained(saved.path, dtype=torch.bfloat16).eval()
    torch.testing.assert_close(logits(model), logits(expected), rtol=2e-2, atol=2e-2)


def test_a_square_layer_of_no_known_kind_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Which way round its weight is cannot be told."""

    class Square(Model):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model.layers[1].self_attn.q_proj = Cubed(64, 64)
            self.model.layers[1].mlp.up_proj = nn.Linear(64, 128, bias=False)
            self.post_init()

    saved = gptq_folder(tmp_path, float_model(llama_config(), torch.float16))
    with pytest.raises(UnsupportedSchemeError, match=r"q_proj: scheme a quantized Cubed with a weight \[64, 64\]"):
        qcompile.load(saved.path, model_class=Square)
