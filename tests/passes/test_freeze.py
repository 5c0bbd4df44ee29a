"""freeze: what becomes a constant, and what does not."""

import torch
from support.graphs import before_and_after, expect, through, with_state
from support.spellings import BF16, K, N, Written, int8, linear, scale
from torch import Tensor, nn

from qcompile.pipeline import State

X = torch.zeros(2, K, dtype=BF16)


def frozen(model: object, *inputs: Tensor) -> State:
    return with_state(model, inputs or X, through("freeze"))  # type: ignore[arg-type]


def test_parameters_buffers_and_attributes() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(scale(N), requires_grad=False)
            self.register_buffer("b", int8())
            self.plain = scale(N)

        def forward(self, x: Tensor) -> Tensor:
            return linear(x, self.b.to(BF16)) * self.p + self.plain  # type: ignore[operator]

    expect(before_and_after(Layer(), X, "freeze"), __file__, "parameters, buffers, attributes")


def test_paths_are_the_users() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(K, K, dtype=BF16)}) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer["proj"](x)  # type: ignore[index,operator]
            return x

    state = frozen(Deep().requires_grad_(False))
    assert sorted(constant.path for constant in state.constants.values()) == [
        "layers.0.proj.bias",
        "layers.0.proj.weight",
        "layers.1.proj.bias",
        "layers.1.proj.weight",
    ]


def test_arguments_are_no_constants() -> None:
    w = int8()
    assert frozen(lambda x, w: linear(x, w.to(BF16)), X, w).constants == {}


def test_tensors_in_containers_among_the_arguments_are_no_constants() -> None:
    state = with_state(lambda x, d: linear(x, d["w"].to(BF16)), [X, {"w": int8()}], through("freeze"))
    assert state.constants == {}


def test_a_weight_that_the_graph_changes() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = linear(x, m.w.to(BF16))  # type: ignore[operator,union-attr]
        m.w.add_(1)  # type: ignore[operator,union-attr]
        return y

    state = frozen(Written(forward, {"w": int8()}))
    assert state.constants == {}
    assert list(state.refused.values()) == ["its weight is changed by the graph itself, so it is no constant"]


def test_a_weight_made_in_inference_mode() -> None:
    with torch.inference_mode():
        w = int8()
    state = frozen(Written(lambda m, x: linear(x, m.w.to(BF16)), {"w": w}))
    assert state.constants == {}
    assert "torch.no_grad() is enough" in next(iter(state.refused.values()))
