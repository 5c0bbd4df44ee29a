"""The steps of the demonstration work on the real MiniLM weights: near the float model, and every Linear packed."""

from collections.abc import Generator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import qcompile
from demo import schemes, sentences
from demo.llama import dense_logits, float_model
from demo.screen import steps
from qcompile.meaning import sqnr_db

# The largest difference of a cosine between any two of the eight sentences that each quantization makes.
FAR = {"w4a16": 0.15, "w4a16-asym": 0.09, "w8a8": 0.03}


@pytest.fixture(autouse=True)
def fresh() -> Generator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def batch() -> Any:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(sentences.weights_folder())
    return tokenizer(list(sentences.SENTENCES), padding=True, return_tensors="pt")


def minilm(dtype: torch.dtype) -> Any:
    loader: Any = transformers.AutoModel
    return loader.from_pretrained(sentences.weights_folder(), dtype=dtype).eval()


@pytest.fixture(scope="module")
def wanted(batch: Any) -> Tensor:
    embeddings = sentences.embed(minilm(torch.float32), batch)
    return embeddings @ embeddings.T


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_sentences_that_belong_together_stay_together(tmp_path: Path, scheme: str, batch: Any, wanted: Tensor) -> None:
    schemes.make(tmp_path / f"minilm-{scheme}", scheme, lambda: minilm(torch.bfloat16))
    model = qcompile.compile(schemes.load(tmp_path / f"minilm-{scheme}", "AutoModel"), rest="eager")
    embeddings = sentences.embed(model, batch)
    cosines = embeddings @ embeddings.T
    assert float((cosines - wanted).abs().max()) < FAR[scheme]
    pairs = list(combinations(range(len(sentences.SENTENCES)), 2))
    nearest = {pair for pair in sorted(pairs, key=lambda pair: -float(cosines[pair]))[:3]}
    assert nearest == {(0, 1), (2, 3), (4, 5)}
    made = qcompile.report()
    assert len(made.served) == len(made.sites) == 37
    assert made.bytes_after < 0.55 * sum(site.n * site.k * 2 for site in made.sites)


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def model() -> Any:
        made.append(1)
        return minilm(torch.bfloat16)

    for _ in range(2):
        schemes.make(tmp_path / "minilm-w8a8", "w8a8", model)
    assert len(made) == 1


def test_llama_of_the_demo_agrees_with_its_dense_model(tmp_path: Path) -> None:
    schemes.make(tmp_path / "llama-w4a16", "w4a16", lambda: float_model("small"))
    model = qcompile.compile(schemes.load(tmp_path / "llama-w4a16", "AutoModelForCausalLM"), rest="eager")
    ids = torch.arange(10, 26)[None]
    with torch.inference_mode():
        assert sqnr_db(dense_logits(tmp_path / "llama-w4a16", ids), model(ids).logits[0]) > 35


def test_steps_count_to_the_end() -> None:
    with steps(3) as step:
        for text in ("one", "two", "three"):
            step(text)
        assert step.bar.tasks[0].completed == 2
        assert step.bar.tasks[0].description == "three"
