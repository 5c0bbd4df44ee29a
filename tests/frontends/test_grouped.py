"""GPTQ and AWQ modules: libraries' get a traceable forward, others only if their own cannot be traced and agrees with a reading."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.checkpoints import awq_tensors, gptq_tensors, round_to_nearest
from torch import Tensor, nn

from qcompile.frontends import prepare, prepared_notes
from qcompile.frontends.linear import GroupedLinear

N, K, GROUP = 48, 64, 32


class Layer(nn.Module):
    """Holds the tensors as a library's module does: buffers, and a bias that may be None."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    bias: Tensor | None
    dense: Tensor

    def __init__(self, tensors: dict[str, Tensor], bias: bool = False) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        if bias:
            self.register_buffer("bias", torch.linspace(-1, 1, N).half())
        else:
            self.bias = None
        self.bits = 4

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the library's kernel is not installed")


class TorchQuantLinear(Layer):
    __module__ = "gptqmodel.nn_modules.qlinear.torch"


class MarlinQuantLinear(Layer):
    __module__ = "gptqmodel.nn_modules.qlinear.marlin"


class WQLinear_GEMM(Layer):  # noqa: N801 - the library's name
    __module__ = "awq.modules.linear.gemm"


class Converted(Layer):
    """gptqmodel converts version 1 to 2 in memory and says so."""

    __module__ = "gptqmodel.nn_modules.qlinear.torch"

    def qzero_format(self) -> int:
        return 2


Converted.__name__ = "TorchQuantLinear"


class Plain(Layer):
    """Somebody's own plain torch code (version 1)."""

    def weight_of(self) -> Tensor:
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        zeros = ((self.qzeros[:, :, None] >> shifts) & 15).reshape(self.scales.shape) + 1
        codes = ((self.qweight[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, N)
        columns = self.g_idx.long()
        weight: Tensor = ((codes - zeros[columns]) * self.scales[columns]).t()
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight_of(), self.bias)


class Opaque(Plain):
    """The same with a Python branch on data, which breaks graphs."""

    def forward(self, x: Tensor) -> Tensor:
        if float(self.scales.sum()) == 0.25:
            return x
        return nn.functional.linear(x, self.weight_of(), self.bias)


def layer(
    kind: type[Layer] = TorchQuantLinear, symmetric: bool = True, act_order: bool = False, v2: bool = False, **kw: Any
) -> Layer:
    """A layer of that class and its dense weight as `dense`."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(N, K, generator=generator).half()
    g_idx = torch.arange(K, dtype=torch.int32) // GROUP
    if act_order:
        g_idx = g_idx[torch.randperm(K, generator=generator)]
    codes, scales, zeros = round_to_nearest(weight, g_idx, 4, symmetric)
    tensors = awq_tensors(codes, scales, zeros) if kind is WQLinear_GEMM else gptq_tensors(codes, scales, zeros, g_idx, 4, v2)
    made = kind(tensors, **kw)
    columns = g_idx.long()
    made.dense = (codes - zeros[:, columns]).half() * scales[:, columns]
    return made


def model_of(*layers: Layer, label: str | None = None) -> Any:
    model: Any = nn.Sequential(*layers)
    if label is not None:
        model.config = SimpleNamespace(quantization_config={"checkpoint_format": label})
    return model


def check(module: Any) -> None:
    """The module's new forward gives the dense weight's product, exactly and in one graph."""
    assert isinstance(module, GroupedLinear)
    x = torch.randn(3, 5, K).half()
    dense: Any = module.dense
    expected = nn.functional.linear(x, dense, module.bias)
    assert torch.equal(module(x), expected)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(module, backend="eager", fullgraph=True)(x), expected)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_symmetric_library_modules_are_read_by_their_data(bias: bool, v2: bool, act_order: bool) -> None:
    model = model_of(layer(act_order=act_order, v2=v2, bias=bias))
    assert prepare(model) is model
    check(model[0])
    assert model[0].used == (False, act_order)
    assert list(model.state_dict()) == [
        f"0.{name}" for name in ("qweight", "qzeros", "scales", "g_idx", *(["bias"] if bias else []))
    ]


def test_asymmetric_modules_follow_the_label() -> None:
    for v2 in (False, True):
        model = model_of(layer(symmetric=False, v2=v2), label="gptq_v2" if v2 else "gptq")
        prepare(model)
        check(model[0])
        assert "as the label says" in prepared_notes(model)["0"]


def test_symmetric_layers_overrule_a_wrong_label() -> None:
    model = model_of(layer(v2=True), layer(symmetric=False, v2=True), label="gptq")
    prepare(model)
    check(model[0])
    check(model[1])
    assert prepared_notes(model)["1"] == "zero points read as version 2, which the symmetric layers show; the label says version 1"


def test_the_module_itself_knows_best() -> None:
    model = model_of(layer(Converted, symmetric=False, v2=True), label="gptq")
    prepare(model)
    check(model[0])
    assert "as the module says" in prepared_notes(model)["0"]


def test_awq() -> None:
    model = model_of(layer(WQLinear_GEMM, symmetric=False, bias=True))
    prepare(model)
    check(model[0])


def test_a_kernels_own_order_is_left_alone() -> None:
    model = model_of(layer(MarlinQuantLinear))
    prepare(model)
    assert type(model[0]) is MarlinQuantLinear
    assert "kernel's own order" in prepared_notes(model)["0"]


def test_own_code_that_can_be_traced_is_left_alone() -> None:
    model = model_of(layer(Plain, symmetric=False))
    prepare(model)
    assert type(model[0]) is Plain
    assert not prepared_notes(model)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_own_code_that_cannot_be_traced_is_replaced_by_the_reading_it_confirms(act_order: bool, symmetric: bool) -> None:
    model = model_of(layer(Opaque, symmetric=symmetric, act_order=act_order), label="gptq_v2")
    prepare(model)
    check(model[0])
    assert "which its own forward confirms" in prepared_notes(model)["0"]


def test_own_code_that_agrees_with_nothing_is_left_alone() -> None:
    class Other(Opaque):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model = model_of(layer(Other, symmetric=False))
    prepare(model)
    assert type(model[0]) is Other
    assert "agrees with no GPTQ reading" in prepared_notes(model)["0"]


def test_prepare_twice_changes_nothing() -> None:
    model = model_of(layer(act_order=True))
    prepare(model)
    structure = model[0].structure
    prepare(model)
    assert model[0].structure == structure
    check(model[0])


def with_tensor(name: str, value: Tensor) -> Any:
    made = layer(symmetric=False)
    setattr(made, name, value)
    return model_of(made)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scales", torch.ones(3, N).half(), r"0\.scales: expected \[G, 48\] with G a divisor of K=64"),
        ("g_idx", torch.full((K,), 2, dtype=torch.int32), r"0\.g_idx: expected \[64\] with values 0 .. 1, got \[64\], 2 .. 2"),
        ("g_idx", torch.cat([torch.zeros(40), torch.ones(24)]).int(), r"0\.g_idx: expected 32 columns in every group"),
        ("g_idx", torch.zeros(K + 1, dtype=torch.int32), r"0\.g_idx: expected a torch.int32 tensor \[64\], got torch.int32 \[65\]"),
    ],
)
def test_contradictory_tensors_are_named(name: str, value: Tensor, message: str) -> None:
    model = with_tensor(name, value)
    model.append(layer())
    prepare(model)
    assert type(model[0]) is TorchQuantLinear
    assert re.search(message, prepared_notes(model)["0"])
    check(model[1])


def test_a_scale_that_is_no_number_is_left_alone() -> None:
    model = with_tensor("scales", torch.full((K // GROUP, N), float("nan")).half())
    prepare(model)
    assert "0.scales: expected finite values, got 96 of 96" in prepared_notes(model)["0"]


@pytest.mark.parametrize("act_order", [False, True])
def test_three_bits(act_order: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, K, generator=generator).half()
    g_idx = torch.arange(K, dtype=torch.int32) // GROUP
    if act_order:
        g_idx = g_idx[torch.randperm(K, generator=generator)]
    codes, scales, zeros = round_to_nearest(weight, g_idx, 3, symmetric=False)
    stream = {"qweight": bit_stream(codes, 3).t().contiguous(), "qzeros": bit_stream((zeros - 1).t() & 7, 3)}
    made = TorchQuantLinear({**stream, "scales": scales.t().contiguous(), "g_idx": g_idx})
    columns = g_idx.long()
    made.dense = (codes - zeros[:, columns]).half() * scales[:, columns]
    model = model_of(made, label="gptq")
    prepare(model)
    check(model[0])


def bit_stream(codes: Tensor, bits: int) -> Tensor:
    """Codes [R, C] as int32 words, bit after bit, written down from the format's description."""
    places = (codes.long()[:, :, None] >> torch.arange(bits)) & 1
    words = (places.reshape(len(codes), -1, 32) << torch.arange(32)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def test_five_bits_are_left_alone_by_name() -> None:
    made = layer(symmetric=False)
    made.qzeros = torch.zeros(K // GROUP, N * 3 // 32 + 1, dtype=torch.int32)
    made.bits = 5
    model = model_of(made, layer())
    prepare(model)
    assert "scheme GPTQ with 5 bits is not supported" in prepared_notes(model)["0"]
    check(model[1])
