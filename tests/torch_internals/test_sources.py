"""Paths in the user's model from the names that Dynamo gives to where a tensor was found."""

import pytest
import torch
from torch import nn

from qcompile.torch_internals.names import path_of_source, path_without_wrappers, tensors_of, unwrapped


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("L['self']._modules['layers']._modules['0']._buffers['w']", "layers.0.w"),
        ("L['self'].layers[0].weight", "layers.0.weight"),
        ("L['args'][0]._modules['fc']._parameters['weight']", "0.fc.weight"),
        ("L['w']", "w"),
        ("G['TABLE']", "TABLE"),
        ("G['model']._modules['fc']._parameters['weight']", "model.fc.weight"),
        ("L['self'].__dict__['q']", "q"),
        ("", ""),
    ],
)
def test_path_of_source(name: str, path: str) -> None:
    assert path_of_source(name) == path


def test_wrappers_are_no_part_of_a_path() -> None:
    assert path_without_wrappers("_orig_mod.layers.0._orig_mod.fc") == "layers.0.fc"
    assert path_without_wrappers("_orig_mod") == path_without_wrappers("") == ""
    layer: nn.Module = nn.ReLU()
    compiled = torch.compile(layer)
    assert isinstance(compiled, nn.Module) and compiled is not layer
    assert unwrapped(compiled) is unwrapped(layer) is layer


def test_each_tensor_is_in_its_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Sequential(nn.BatchNorm1d(2, affine=False)))
    found = {place.path: place.module for place, _ in tensors_of(model)}
    assert found == {"0.weight": "0", "1.0.running_mean": "1.0", "1.0.running_var": "1.0", "1.0.num_batches_tracked": "1.0"}
