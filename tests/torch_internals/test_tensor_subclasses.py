"""Weights that are tensors of a subclass are read through it: a Llama whose linears have them is served whole."""

import pytest
import torch
from support import int8_rows
from support.layer_stacks import OPTIONS, compiled
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import qcompile
from qcompile.torch_internals import tensors

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 128}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).to(torch.bfloat16).eval()


def test_all_linears_of_a_llama_are_served() -> None:
    model, tokens = int8_rows.quantize(llama()), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model(tokens).logits
        got = qcompile.compile(model, **OPTIONS)(tokens).logits
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.02)
    assert qcompile.report().summary == "qcompile: 14 of 14 quantized linears rewritten"
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    assert {row.module for row in qcompile.report().sites} == linears
    assert not qcompile.report().notes


def test_a_part_of_the_graph_that_keeps_them_is_mentioned() -> None:
    class Table(nn.Module):
        weight: int8_rows.Int8Rows

        def __init__(self) -> None:
            super().__init__()
            weight = int8_rows.Int8Rows.of(torch.randn(32, 32))
            self.register_parameter("weight", nn.Parameter(weight, requires_grad=False))

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten._int_mm(x.to(torch.int8), self.weight.codes.t()) * self.weight.scale

    with torch.no_grad(), pytest.warns(UserWarning, match="aten::_int_mm"):
        compiled(nn.Sequential(Table()))(torch.randn(32, 32) * 10)
    (row,) = qcompile.report().sites
    assert row.module == "0"


def test_parts_of_a_subclass_are_found() -> None:
    weight = int8_rows.Int8Rows.of(torch.randn(4, 8))
    assert [(name, part is getattr(weight, name)) for name, part in tensors.parts_of(weight)] == [("codes", True), ("scale", True)]
    assert list(tensors.parts_of(torch.randn(2))) == []
