"""What only resembles experts or attention is not called so: constant inputs, batches of one matrix, state spaces, linear attention."""

from pathlib import Path

import pytest
import torch
import transformers
from support.tiny_models import IDS, SMALL
from torch import Tensor, nn

import qcompile
from qcompile.frontends.quantize import quantize
from qcompile.meaning import sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("shared", [False, True])
def test_linears_on_relative_positions_are_linears(shared: bool, tmp_path: Path) -> None:
    """DeBERTa multiplies its table of relative positions, a constant, with the same kind of weight as tokens."""
    config = transformers.DebertaV2Config(
        **(SMALL | {"num_hidden_layers": 1}),
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=16,
        share_att_key=shared,
    )
    torch.manual_seed(0)
    quantize(transformers.DebertaV2Model(config).to(torch.bfloat16).eval(), tmp_path, group=32)
    model = qcompile.load(tmp_path)
    with torch.no_grad():
        expected = qcompile.prepare(model)(IDS).last_hidden_state.clone()
        got = qcompile.compile(model, rest="eager")(IDS).last_hidden_state
    assert sqnr_db(expected, got) >= 35.0
    rows = qcompile.report().sites
    assert len(rows) == 8 and all(row.kernel is not None for row in rows)


class Batch(nn.Module):
    """x [B, M, K] times one matrix, in the shape of a batch."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        generator = torch.Generator().manual_seed(2)
        shape = (1, 64, 128) if spelling == "stored" else (64, 128)
        self.register_buffer("codes", torch.randint(-8, 8, shape, dtype=torch.int8, generator=generator))
        self.register_buffer("scales", torch.rand((*shape[:-1], 1), generator=generator) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        w = (self.codes.float() * self.scales).to(x.dtype)  # type: ignore[operator]
        if self.spelling == "stored":
            return x @ w.transpose(1, 2)
        if self.spelling == "expanded":
            return torch.bmm(x, w.t()[None].expand(x.shape[0], 128, 64))
        return x[:, None] @ w.t()[None, None]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("spelling", ["stored", "expanded", "four dimensions"])
def test_a_batch_of_one_matrix_is_a_linear(spelling: str, size: int, dynamic: bool) -> None:
    model, x = Batch(spelling), torch.randn(size, 5, 128)
    with torch.no_grad():
        got = torch.compile(model, backend="qcompile", dynamic=dynamic, options={"rest": "eager", "kernels": ["reference"]})(x)
        assert torch.allclose(got, model(x), atol=1e-5)
    assert [row.kernel for row in qcompile.report().sites] == ["reference.quantized_linear"]


def test_two_matrices_are_none() -> None:
    model = Batch("stored")
    model.codes, model.scales = (torch.cat([item, item.flip(1)]) for item in (model.codes, model.scales))  # type: ignore[arg-type,union-attr,list-item]
    x = torch.randn(2, 5, 128)
    with torch.no_grad(), pytest.warns(UserWarning, match="batch of 2 matrices"):
        got = torch.compile(model, backend="qcompile", options={"rest": "eager"})(x)
    assert torch.equal(got, model(x))


def test_state_spaces_and_linear_attention_are_no_attention() -> None:
    t = transformers
    sizes = {"hidden_size": 64, "num_heads": 4, "head_dim": 32, "state_size": 16, "num_hidden_layers": 1, "vocab_size": 256}
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
    layers = {"layer_types": ["linear_attention", "full_attention"], "mlp_only_layers": [0, 1]}
    mamba = t.Mamba2ForCausalLM(t.Mamba2Config(**sizes, n_groups=2, chunk_size=8))
    qwen = t.Qwen3NextForCausalLM(t.Qwen3NextConfig(**SMALL, **linear, **experts, **layers, num_key_value_heads=2, head_dim=32))
    for model, paths in ((mamba, []), (qwen, ["model.layers.1.self_attn"])):
        torch._dynamo.reset()
        with torch.no_grad():
            qcompile.compile(model.to(torch.bfloat16).eval(), rest="eager")(IDS)
        assert [row.module for row in qcompile.report().others if row.format == "attention"] == paths
