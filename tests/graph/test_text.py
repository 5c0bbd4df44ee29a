"""Graphs as text: names, defaults, arguments of every kind; different graphs differ, and keys say when two functions are the same."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from qcompile.graph.text import structural_key, to_text, type_text
from qcompile.operators import dequantize_packed, quantized_linear

aten = torch.ops.aten


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class Drawn:
    """A graph made by hand."""

    def __init__(self) -> None:
        self.graph = fx.Graph()

    def input(self, name: str, val: Any = None, **meta: Any) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta.update(meta if val is None else {"val": val, **meta})
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(target, args, kwargs)

    def text(self, *results: fx.Node) -> str:
        self.graph.output(results)
        return to_text(self.graph)


def called(target: Any, *args: Any, **kwargs: Any) -> str:
    """The text of one call; strings that begin with % stand for inputs of that name."""
    drawn = Drawn()
    known: dict[str, fx.Node] = {}

    def given(item: Any) -> Any:
        if isinstance(item, str) and item.startswith("%"):
            return known.setdefault(item, drawn.input(item[1:])) if item not in known else known[item]
        if isinstance(item, list | tuple):
            return type(item)(given(part) for part in item)
        return item

    operands, options = given(args), {key: given(item) for key, item in kwargs.items()}
    text = drawn.text(drawn.call(target, *operands, **options))
    return text.splitlines()[-2].partition(" = ")[2]


LINEAR = ("%x", "%codes", "%scales")


@pytest.mark.parametrize(
    ("text", "target", "args", "kwargs"),
    [
        ("mm(a, b)", aten.mm.default, ("%a", "%b"), {}),
        ("add.Tensor(a, 2)", aten.add.Tensor, ("%a", 2), {}),
        ("add.Tensor(a, b, alpha=2)", aten.add.Tensor, ("%a", "%b"), {"alpha": 2}),
        ("add.Tensor(a, b)", aten.add.Tensor, ("%a", "%b"), {"alpha": 1}),
        ("add.Tensor(a, b, alpha=1.0)", aten.add.Tensor, ("%a", "%b"), {"alpha": 1.0}),
        ("cat([a, b])", aten.cat.default, (["%a", "%b"],), {}),
        ("cat([a, b])", aten.cat.default, (["%a", "%b"], 0), {}),
        ("cat([a, b], -1)", aten.cat.default, (["%a", "%b"], -1), {}),
        ("slice.Tensor(a, end=4)", aten.slice.Tensor, ("%a", 0, None, 4), {}),
        ("slice.Tensor(a, -1, 0, 4)", aten.slice.Tensor, ("%a", -1, 0, 4), {}),
        ("index.Tensor(a, [None, b])", aten.index.Tensor, ("%a", [None, "%b"]), {}),
        ("view.dtype(a, u8)", aten.view.dtype, ("%a", torch.uint8), {}),
        ("_to_copy(a, dtype=bf16, device='cpu')", aten._to_copy.default, ("%a",), {"dtype": torch.bfloat16, "device": torch.device("cpu")}),
        ("prims.convert_element_type(a, float8_e4m3fn)", torch.ops.prims.convert_element_type.default, ("%a", torch.float8_e4m3fn), {}),
        ("operator.getitem(a, 1)", operator.getitem, ("%a", 1), {}),
        ("operator.getitem(a, (1, (2,), slice(0, None, b)))", operator.getitem, ("%a", (1, (2,), slice(0, None, 3))), {}),
        ("quantized_linear(x, codes, scales, group=32)", quantized_linear, LINEAR, {"group": 32}),
        ("quantized_linear(x, codes, scales, bias=b, group=32)", quantized_linear, (*LINEAR, None, None, "%b"), {"group": 32}),
        ("quantized_linear(x, codes, scales, zeros=z, group=32, activation='token')", quantized_linear, (*LINEAR, "%z"),
         {"group": 32, "codebook": "", "activation": "token"}),
        ("dequantize_packed(p, s, zeros=z, layout='gptq', bits=4, group=32, n=8, k=64, dtype=f16)", dequantize_packed,
         ("%p", "%s", "%z", None, "gptq", 4, 32, 8, 64, torch.float16), {}),
    ],
)  # fmt: skip
def test_a_call(text: str, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    assert called(target, *args, **kwargs) == text.replace("b)))", "3)))")


def test_constants_by_path_and_inputs_by_name() -> None:
    drawn = Drawn()
    weight = drawn.input("arg0_1", tensor(8, 4, dtype=torch.int8), constant="layers.0.mlp.weight")
    x = drawn.input("arg1_1", tensor(2, 4, dtype=torch.bfloat16), input="x")
    packed = drawn.input("packed_0", tensor(8, 4), constant="layers.0.mlp (packed 0)")
    text = drawn.text(drawn.call(aten.mm.default, x, weight), packed)
    assert text.splitlines() == [
        "%layers.0.mlp.weight: i8[8, 4] = constant, on meta",
        "x: bf16[2, 4] = input, on meta",
        "packed_0: f32[8, 4] = constant layers.0.mlp (packed 0), on meta",
        "mm_default = mm(x, %layers.0.mlp.weight)",
        "return (mm_default, packed_0)",
    ]


def test_two_constants_of_one_path_and_two_inputs_of_one_name_keep_their_own() -> None:
    drawn = Drawn()
    nodes = [drawn.input(f"arg{index}_1", constant="w") for index in range(2)]
    nodes += [drawn.input(f"arg{index}_1", input="x") for index in range(2, 4)]
    lines = drawn.text(*nodes).splitlines()
    assert lines == [
        "arg0_1 = constant w",
        "arg1_1 = constant w",
        "arg2_1 = input",
        "arg3_1 = input",
        "return (arg0_1, arg1_1, arg2_1, arg3_1)",
    ]


@pytest.mark.parametrize("name", ["mul", "bf16", "nan", "torch.strided", "0", "a b"])
def test_an_input_never_takes_the_name_of_something_else(name: str) -> None:
    drawn = Drawn()
    x = drawn.input("arg0_1", input=name)
    product = drawn.call(aten.mul.Tensor, x, 2)
    product.name = "mul"
    assert drawn.text(product).splitlines() == ["arg0_1 = input", "mul = mul.Tensor(arg0_1, 2)", "return (mul,)"]


def test_a_node_that_is_called_like_a_dtype_is_marked() -> None:
    drawn = Drawn()
    assert drawn.text(drawn.call(aten.neg.default, drawn.input("bf16"))).splitlines()[:2] == [
        "$bf16 = input",
        "neg_default = neg($bf16)",
    ]


def test_dead_nodes_are_left_out() -> None:
    drawn = Drawn()
    x = drawn.input("x")
    drawn.call(aten.neg.default, x)
    assert drawn.text(x) == "x = input\nreturn (x,)\n"


def test_strides_and_device_of_an_input() -> None:
    drawn = Drawn()
    x = drawn.input("x", torch.empty(4, 8).t())
    assert drawn.text(x).splitlines()[0] == "x: f32[8, 4] = input, strides [1, 8]"


def test_tensors_that_the_code_spelled_out() -> None:
    def text(value: Tensor) -> str:
        drawn = Drawn()
        drawn.graph.owning_module = torch.nn.Module()
        drawn.graph.owning_module.c = value
        return drawn.text(drawn.graph.create_node("get_attr", "c")).splitlines()[0]

    assert text(torch.tensor([0, 4, 8])) == "c = literal i64[3] [0, 4, 8]"
    assert text(torch.tensor([0, 4, 8], dtype=torch.int32)) == "c = literal i32[3] [0, 4, 8]"
    large = torch.arange(100)
    assert text(large) == text(large.clone()) != text(large + 1)


def test_a_graph_that_an_operator_takes_stands_below_its_name() -> None:
    inner = Drawn()
    x = inner.input("x")
    inner.graph.output((inner.call(aten.neg.default, x),))
    drawn = Drawn()
    root = torch.nn.Module()
    root.branch = fx.GraphModule(torch.nn.Module(), inner.graph)
    drawn.graph.owning_module = root
    branch = drawn.graph.create_node("get_attr", "branch")
    y = drawn.input("y")
    cond = torch.ops.higher_order.cond
    assert drawn.text(drawn.call(cond, True, branch, branch, (y,))).splitlines() == [
        "branch = graph:",
        "    x = input",
        "    neg_default = neg(x)",
        "    return (neg_default,)",
        "y = input",
        "cond = higher_order.cond(True, branch, branch, (y,))",
        "return (cond,)",
    ]


def symbolic() -> Any:
    return torch.fx.experimental.symbolic_shapes.ShapeEnv().create_unbacked_symint()


@pytest.mark.filterwarnings("ignore:Raw SymInt value")
def test_symbolic_sizes() -> None:
    drawn = Drawn()
    size = symbolic()
    node = drawn.input("n", size)
    text = drawn.text(drawn.call(aten.view.default, drawn.input("x", torch.empty(4)), [node, size]))
    assert text.splitlines()[0] == f"n: {size} = input"
    assert f"view(x, [n, size({size})])" in text


@pytest.mark.parametrize(
    ("val", "text"),
    [
        (torch.empty(4, 64, dtype=torch.bfloat16), "bf16[4, 64]"),
        (torch.empty((), dtype=torch.bool), "b1[]"),
        ((torch.empty(2), [torch.empty(3)]), "(f32[2], (f32[3]))"),
        (None, ""),
        (3, "int"),
    ],
)
def test_types(val: Any, text: str) -> None:
    assert type_text(val) == text


DIFFERENT: list[Callable[[Drawn, fx.Node, fx.Node], fx.Node]] = [
    lambda g, x, y: g.call(aten.add.Tensor, x, y),
    lambda g, x, y: g.call(aten.add.Tensor, y, x),
    lambda g, x, y: g.call(aten.add.Tensor, x, y, alpha=2),
    lambda g, x, y: g.call(aten.add.Tensor, x, y, alpha=2.0),
    lambda g, x, y: g.call(aten.add.Scalar, x, 1),
    lambda g, x, y: g.call(aten.add.Scalar, x, 1.0),
    lambda g, x, y: g.call(aten.add.Scalar, x, True),
    lambda g, x, y: g.call(aten.cat.default, [x, y]),
    lambda g, x, y: g.call(aten.cat.default, [x, y], 1),
    lambda g, x, y: g.call(aten._to_copy.default, x, dtype=torch.int8),
    lambda g, x, y: g.call(aten._to_copy.default, x, dtype=torch.uint8),
    lambda g, x, y: g.call(operator.getitem, x, (0, 1)),
    lambda g, x, y: g.call(operator.getitem, x, [0, 1]),
    lambda g, x, y: g.call(quantized_linear, x, x, y, group=64),
    lambda g, x, y: g.call(quantized_linear, x, x, y, y, group=64),
    lambda g, x, y: g.call(quantized_linear, x, x, y, None, y, group=64),
    lambda g, x, y: g.call(quantized_linear, x, x, y, None, None, y, group=64),
]


def drawn_with(make: Callable[[Drawn, fx.Node, fx.Node], fx.Node]) -> tuple[Drawn, list[fx.Node], fx.Node]:
    drawn = Drawn()
    inputs = [drawn.input(name, torch.empty(4, 4)) for name in "xy"]
    result = make(drawn, *inputs)
    result.name = "result"
    return drawn, inputs, result


def test_different_graphs_have_different_texts_and_keys() -> None:
    texts, keys = set(), set()
    for make in DIFFERENT:
        drawn, inputs, result = drawn_with(make)
        keys.add(structural_key([result], inputs))
        texts.add(drawn.text(result))
    assert len(texts) == len(keys) == len(DIFFERENT)


def test_a_key_names_the_stops_by_place_and_tells_their_types() -> None:
    def key(dtype: torch.dtype, *names: str) -> str:
        drawn = Drawn()
        inputs = [drawn.input(name, torch.empty(4, 4, dtype=dtype), constant=name) for name in names]
        return structural_key([drawn.call(aten.mul.Tensor, *inputs)], inputs)

    assert key(torch.float32, "a", "b") == key(torch.float32, "c", "d")
    assert key(torch.float32, "a", "b") != key(torch.float16, "a", "b")
    assert key(torch.float32, "a", "b").splitlines() == [
        "%0: torch.float32[4, 4][4, 1]",
        "%1: torch.float32[4, 4][4, 1]",
        "%2 = aten.mul.Tensor(%0, %1){}",
        "return %2",
    ]


def test_a_key_tells_strides_and_literals() -> None:
    def key(x: Tensor, literal: Tensor) -> str:
        drawn = Drawn()
        leaf = drawn.input("x", x)
        drawn.graph.owning_module = torch.nn.Module()
        drawn.graph.owning_module.c = literal
        return structural_key([drawn.call(aten.add.Tensor, leaf, drawn.graph.create_node("get_attr", "c"))], [leaf])

    square, ones = torch.empty(4, 4), torch.ones(4)
    assert key(square, ones) == key(square.clone(), ones.clone())
    assert len({key(square, ones), key(square.t(), ones), key(square, ones + 1), key(square, ones.double())}) == 4
