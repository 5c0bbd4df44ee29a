"""A model whose raw weights were freed: whatever would read them says so, instead of crashing the process; calling it goes on."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import compressed_tensors_folder, llama_config

import qcompile
from qcompile.errors import ReleasedWeightError

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = compressed_tensors_folder(tmp_path_factory.mktemp("w4"), llama_config(num_hidden_layers=1), bits=4, group=32).path
    library: Any = transformers
    # Cloned, because memory that lies over the checkpoint's file is not freed.
    loaded = library.AutoModelForCausalLM.from_pretrained(folder).eval()
    for tensor in (*loaded.parameters(), *loaded.buffers()):
        tensor.data = tensor.data.clone()
    torch._dynamo.reset()
    compiled = qcompile.compile(loaded, release=True, rest="eager")
    with torch.no_grad():
        compiled(IDS)
    return compiled


@pytest.mark.parametrize(
    "act",
    [
        lambda model, _: model.to(torch.float32),
        lambda model, _: model.to("meta"),
        lambda model, _: model.state_dict(),
        lambda model, folder: model.save_pretrained(folder),
        lambda model, _: copy.deepcopy(model),
        lambda model, _: torch.save(model, io.BytesIO()),
    ],
    ids=["to float32", "to meta", "state_dict", "save_pretrained", "deepcopy", "torch.save"],
)
def test_what_would_read_released_weights_says_so(model: Any, tmp_path: Path, act: Callable[[Any, Path], object]) -> None:
    with pytest.raises(ReleasedWeightError, match=r"weight_(packed|scale) was released after packing"):
        act(model, tmp_path)


def test_a_move_that_moves_nothing_is_none(model: Any) -> None:
    with torch.no_grad():
        want = model(IDS).logits
        model.to("cpu").eval()
        assert torch.equal(model(IDS).logits, want)
