"""Writes a Llama checkpoint of 4-bit codes (compressed-tensors, W4A16) as a GGUF file: Linears Q4_0, embedding and head bfloat16.

The codes stay as they are, each scale is repeated for its groups of 32. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    python -m bench.peers.gguf_file CHECKPOINT_FOLDER FILE.gguf
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bench.peers.ggml_blocks import q4_0

PARTS = {  # of a layer: transformers' name -> GGUF's
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(folder: Path, file: Path) -> None:
    gguf: Any = import_module("gguf")
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    describe(writer, config)
    with safe_open(folder / "model.safetensors", "pt") as stored:
        names = set(stored.keys())
        for ours, theirs, heads in layers_of(config):
            if f"{ours}.weight_packed" in names:
                group = config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"]
                codes, scales = codes_of(stored.get_tensor(f"{ours}.weight_packed")), stored.get_tensor(f"{ours}.weight_scale")
                blocks = q4_0(in_pairs(codes, heads), in_pairs(scales, heads), group)
                writer.add_tensor(f"{theirs}.weight", blocks.numpy(), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
                continue
            weight = stored.get_tensor(f"{ours}.weight")
            if weight.dim() == 1:
                writer.add_tensor(f"{theirs}.weight", weight.float().numpy())
            else:
                octets = weight.bfloat16().view(torch.uint8).numpy()
                writer.add_tensor(f"{theirs}.weight", octets, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")  # token ids go in, logits come out


def layers_of(config: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(transformers' name, GGUF's, heads whose rows change places) of every weight."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    layers = range(config["num_hidden_layers"])
    inner = [(f"model.layers.{at}.{o}", f"blk.{at}.{t}", heads.get(t, 0)) for at in layers for o, t in PARTS.items()]
    return [*((ours, theirs, 0) for ours, theirs in ENDS.items()), *inner]


def codes_of(packed: Tensor) -> Tensor:
    """int8 [N, K], signed, of int32 [N, K / 8] that hold codes + 8, the first one in the lowest bits."""
    octets = packed.contiguous().view(torch.uint8)
    return torch.stack([octets & 15, octets >> 4], dim=-1).flatten(1).to(torch.int8) - 8


def in_pairs(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbours (2i, 2i + 1), transformers the halves (i, i + d / 2) of a head."""
    return rows if heads == 0 else rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
