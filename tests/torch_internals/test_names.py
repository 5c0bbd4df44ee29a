"""Layers are called what they are called in the user's model, however its code is wrapped, and wherever a graph begins."""

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.layer_stacks import OPTIONS, Broken, Layer, Stack, compiled, names_after, wrapped
from torch import Tensor, nn

import qcompile
from qcompile.torch_internals import names

pytestmark = pytest.mark.usefixtures("fresh_compiler")
BOTH = ["layers.0", "layers.1"]


class Decorated(Stack):
    forward = wrapped(wrapped(Stack.forward))


def bound_on_the_instance() -> nn.Module:
    model = Stack()
    model.forward = types.MethodType(wrapped(Stack.forward), model)
    return model


def partial_on_the_instance() -> nn.Module:
    model = Stack()
    model.forward = functools.partial(Stack.forward, model)
    return model


def function_on_the_instance() -> nn.Module:
    model = Stack()

    def forward(x: Tensor) -> Any:
        return model.layers[1](model.layers[0](x))

    model.forward = forward
    return model


def forwards_of_layers_replaced() -> nn.Module:
    """As accelerate does it: the module comes as an argument, and its old forward as a bound method."""
    model = Stack()
    for layer in model.layers:
        old = layer.forward

        def forward(module: nn.Module, *args: Any, _old: Callable[..., Any] = old) -> Any:
            return _old(*args)

        layer.forward = functools.update_wrapper(functools.partial(forward, layer), old)
    return model


def hooks() -> nn.Module:
    model = Stack()
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    return model


SPELLINGS = [
    Stack,
    Decorated,
    bound_on_the_instance,
    partial_on_the_instance,
    function_on_the_instance,
    forwards_of_layers_replaced,
    hooks,
    Broken,
]


@pytest.mark.parametrize("make", SPELLINGS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("way", ["torch.compile", "in place", "qcompile.compile"])
def test_wrapped_forward(make: Callable[[], nn.Module], way: str) -> None:
    model = make().eval()
    if way == "torch.compile":
        call: Any = compiled(model)
    elif way == "in place":
        model.compile(backend="qcompile", options=OPTIONS)
        call = model
    else:
        call = qcompile.compile(model, **OPTIONS)
    assert names_after(call) == BOTH


@pytest.mark.parametrize("make", [Stack, Decorated, function_on_the_instance], ids=lambda make: make.__name__)
def test_explain_names_layers_alike(make: Callable[[], nn.Module]) -> None:
    assert [row.module for row in qcompile.explain(make().eval(), torch.randn(2, 32)).sites] == BOTH


def test_function_over_one_model() -> None:
    model = Stack()
    assert names_after(compiled(lambda x: model(x) + 1)) == BOTH


def test_function_over_two_models_says_which() -> None:
    first, second = Stack(), Stack()
    assert names_after(compiled(lambda x: first(x) + second(x))) == [
        "first.layers.0",
        "first.layers.1",
        "second.layers.0",
        "second.layers.1",
    ]


def test_model_that_another_object_holds() -> None:
    holder = types.SimpleNamespace(net=Stack())
    assert names_after(compiled(lambda x: holder.net(x) * 2)) == BOTH


def test_one_layer_compiled_alone() -> None:
    model = Stack(2, Stack)
    assert names_after(compiled(model.layers[0])) == BOTH


def test_layers_compiled_one_by_one_in_an_eager_model() -> None:
    model = Stack(2, Stack)
    model.layers[0] = compiled(model.layers[0])
    model.layers[1].compile(backend="qcompile", options=OPTIONS)
    assert names_after(model) == ["layers.0.layers.0", "layers.0.layers.1", "layers.1.layers.0", "layers.1.layers.1"]


def test_graph_that_breaks_far_inside() -> None:
    model = Stack(2, Broken)
    assert names_after(compiled(model)) == ["layers.0.layers.0", "layers.0.layers.1", "layers.1.layers.0", "layers.1.layers.1"]


def test_weights_in_a_container_that_is_no_module() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Module()
            self.inner.state = types.SimpleNamespace(codes=torch.randint(-8, 8, (32, 32)).to(torch.int8), scale=torch.rand(32, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.inner.state.codes.float() * self.inner.state.scale).t()

    assert names_after(compiled(Net())) == ["inner"]


def test_tensors_of_no_module_are_called_as_in_the_code() -> None:
    weight = {"codes": torch.randint(-8, 8, (32, 32)).to(torch.int8), "scale": torch.rand(32, 1)}
    assert names_after(compiled(lambda x: x @ (weight["codes"].float() * weight["scale"]).t())) == ["weight"]


def test_operators_are_traced_to_modules_of_the_model() -> None:
    seen: list[str] = []

    def look(gm: torch.fx.GraphModule, _: Any) -> Any:
        named = names.Names()
        named.of(gm.graph.find_nodes(op="placeholder"))
        named.rename_modules(gm.graph)
        stacks = [node.meta["nn_module_stack"] for node in gm.graph.nodes if node.meta.get("nn_module_stack")]
        seen.extend(dict.fromkeys(next(reversed(stack.values()))[0] for stack in stacks))
        return gm.forward

    with torch.no_grad():
        torch.compile(Decorated(), backend=look)(torch.randn(2, 32))
    assert seen == BOTH


def test_path_of_a_source() -> None:
    assert names.path_of_source("L['self']._modules['layers']._modules['0']._buffers['w']") == "layers.0.w"


def test_forgotten_models_are_not_kept_alive() -> None:
    model = Layer()
    names.remember(model)
    assert any(item is model for item in names.given())
    del model
    assert not any(isinstance(item, Layer) for item in names.given())
