"""What an input of the ATen graph is, by AOTAutograd's description of it: a numbered input, a parameter, a buffer, a part of one."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from qcompile.graph.capture import number_of, resolve
from qcompile.graph.nodes import Constant
from qcompile.torch_internals.inputs import BufferInput, ParameterInput, PartInput, PlainInput


class Parts:
    """As a tensor subclass, with tensors inside."""

    def __init__(self) -> None:
        self.codes, self.scales, self.shape = torch.ones(4), torch.ones(2), (4,)


def test_numbers() -> None:
    assert number_of(PlainInput(3)) == 3
    assert number_of(PartInput(PlainInput(2), "codes")) == 2
    assert number_of(PartInput(PartInput(PlainInput(1), "inner"), "codes")) == 1
    assert number_of(ParameterInput("layer.weight")) is None
    assert number_of(PartInput(BufferInput("layer.table"), "codes")) is None
    assert number_of(None) is None


@pytest.fixture
def gm() -> fx.GraphModule:
    root: Any = nn.Module()
    root.layer = nn.Linear(2, 2)
    root.layer.register_buffer("table", torch.arange(3))
    graph = fx.Graph(root)
    for name in ("layer.weight", "layer.table"):
        graph.get_attr(name)
    graph.output(())
    return fx.GraphModule(root, graph)


def test_parameters_and_buffers_are_constants_by_their_path(gm: fx.GraphModule) -> None:
    weight, table = resolve(ParameterInput("layer.weight"), gm, {}), resolve(BufferInput("layer.table"), gm, {})
    assert weight is not None and (weight.path, weight.layer) == ("layer.weight", "layer")
    assert weight.tensor is gm.layer.weight  # type: ignore[union-attr]
    assert table is not None and torch.equal(table.tensor, torch.arange(3))
    assert resolve(ParameterInput("layer.absent"), gm, {}) is None


def test_numbered_inputs_are_constants_where_dynamo_says_so(gm: fx.GraphModule) -> None:
    known = Constant("a.b", torch.ones(1))
    assert resolve(PlainInput(0), gm, {0: known}) is known
    assert resolve(PlainInput(1), gm, {0: known}) is None


def test_parts_belong_to_the_layer_of_the_whole(gm: fx.GraphModule) -> None:
    whole: Any = Parts()
    outer = {0: Constant("layers.0.weight", whole, "layers.0")}
    part = resolve(PartInput(PlainInput(0), "codes"), gm, outer)
    assert part is not None and part.tensor is whole.codes
    assert (part.path, part.layer) == ("layers.0.weight.codes", "layers.0")
    assert resolve(PartInput(PlainInput(0), "shape"), gm, outer) is None
    assert resolve(PartInput(PlainInput(5), "codes"), gm, outer) is None
