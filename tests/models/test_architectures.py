"""Real transformers classes with small random configurations, quantized by compressed-tensors, must come out right, every Linear served."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import float_model
from support.tiny_models import IDS, SMALL
from torch import Tensor, nn

import qcompile
from qcompile.frontends.quantize import quantize
from qcompile.meaning import sqnr_db

GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
MASK = torch.ones_like(IDS)


def bert_like() -> dict[str, Any]:
    return {"input_ids": IDS, "attention_mask": MASK}


def pixels() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.bfloat16)}


def speech() -> dict[str, Any]:
    features = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(3), dtype=torch.bfloat16)
    return {"input_features": features, "decoder_input_ids": IDS[:1]}


def pairs() -> dict[str, Any]:
    return {"input_ids": IDS, "decoder_input_ids": IDS}


def tokens() -> dict[str, Any]:
    return {"input_ids": IDS}


def _models() -> dict[str, tuple[Any, Any, Any]]:
    t = transformers
    whisper = t.WhisperConfig(
        d_model=128, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=256,
        decoder_ffn_dim=256, vocab_size=256, num_mel_bins=16, max_source_positions=32, max_target_positions=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    t5 = t.T5Config(d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, vocab_size=256, decoder_start_token_id=0)
    vit = t.ViTConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    opt = t.OPTConfig(
        hidden_size=128, ffn_dim=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=256, max_position_embeddings=64,
        word_embed_proj_dim=128,
    )  # fmt: skip
    return {
        "llama": (t.LlamaForCausalLM, t.LlamaConfig(**SMALL, **GROUPED), tokens),
        "qwen3": (t.Qwen3ForCausalLM, t.Qwen3Config(**SMALL, **GROUPED, head_dim=32), tokens),
        "gemma3": (t.Gemma3ForCausalLM, t.Gemma3TextConfig(**SMALL, **GROUPED, head_dim=32), tokens),
        "phi3": (t.Phi3ForCausalLM, t.Phi3Config(**SMALL, **GROUPED, pad_token_id=0), tokens),
        "opt": (t.OPTForCausalLM, opt, tokens),
        "gpt_neox": (t.GPTNeoXForCausalLM, t.GPTNeoXConfig(**SMALL), tokens),
        "bert": (t.BertModel, t.BertConfig(**SMALL), bert_like),
        "vit": (t.ViTModel, vit, pixels),
        "whisper": (t.WhisperForConditionalGeneration, whisper, speech),
        "t5": (t.T5ForConditionalGeneration, t5, pairs),
    }


MODELS = _models()


def output(result: Any) -> Tensor:
    """The model's main output, logits where it has them."""
    logits = getattr(result, "logits", None)
    return logits if isinstance(logits, Tensor) else result.last_hidden_state


def quantized_linears(model: nn.Module) -> set[str]:
    """Paths of the Linears that hold packed or int8 weights."""
    return {
        name
        for name, module in model.named_modules()
        if any(key in dict(module.named_parameters(recurse=False)) for key in ("weight_packed",))
        or getattr(getattr(module, "weight", None), "dtype", None) is torch.int8
    }


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("scheme", ["w4a16", "w8a8"])
def test_logits_equal_the_dense_model(name: str, scheme: str, tmp_path: Path) -> None:
    kind, config, inputs = MODELS[name]
    torch.manual_seed(0)
    model = kind(config).to(torch.bfloat16).eval()
    options: dict[str, Any] = {"group": 32} if scheme == "w4a16" else {"bits": 8, "group": None, "activations": "dynamic"}
    quantize(model, tmp_path, ignore=("re:.*lm_head", "re:.*proj_out"), **options)
    model = qcompile.load(tmp_path)
    given = inputs()
    with torch.no_grad():
        linears = quantized_linears(model)
        expected = output(qcompile.prepare(model)(**given)).clone()
        got = output(qcompile.compile(model, rest="eager")(**given))
    # W8A8: the fast kernel rounds activations with max|x| / 127 where the checkpoint's code has 127.5, so codes may differ by one.
    assert sqnr_db(expected, got) >= (35.0 if scheme == "w4a16" else 25.0)
    report = qcompile.report()
    assert linears, "nothing was quantized, so nothing was tested"
    assert {site.module for site in report.sites if site.kernel is not None} == linears
    assert not [site for site in report.sites if site.kernel is None]
    agree = float((expected.argmax(-1) == got.argmax(-1)).float().mean())
    print(f"{name} {scheme}: {sqnr_db(expected, got):.1f} dB, top-1 agreement {agree:.3f}")
    assert agree >= 0.75  # random weights: the best logits are close together


def test_experts_are_left_right(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**SMALL, **GROUPED, num_local_experts=4, num_experts_per_tok=2)
    quantize(float_model(config), tmp_path, group=32, ignore=("re:.*lm_head", "re:.*gate$"))
    model = qcompile.load(tmp_path)
    with torch.no_grad():
        expected = qcompile.prepare(model)(IDS).logits.clone()
        got = qcompile.compile(model, rest="eager")(IDS).logits
    assert sqnr_db(expected, got) >= 35.0
    for site in qcompile.report().sites:
        assert site.kernel is not None or site.declined or site.reasons


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
