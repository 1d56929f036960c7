"""Dream in plain torch, by its differences from LLaDA, and random checkpoints in its layout.

Both are the same transformer. Dream has Qwen2's tensor names, biases on queries, keys and values, other
names in ``config.json``, and its logits are shifted: the publisher's sampler does
``torch.cat([logits[:, :1], logits[:, :-1]], dim=1)`` before it reads them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from llada_reference import ReferenceLLaDA, random_tensors, write_files
from torch import Tensor

DREAM_NAMES = {
    "wte": "model.embed_tokens",
    "ln_f": "model.norm",
    "ff_out": "lm_head",
    "blocks.#.attn_norm": "model.layers.#.input_layernorm",
    "blocks.#.q_proj": "model.layers.#.self_attn.q_proj",
    "blocks.#.k_proj": "model.layers.#.self_attn.k_proj",
    "blocks.#.v_proj": "model.layers.#.self_attn.v_proj",
    "blocks.#.attn_out": "model.layers.#.self_attn.o_proj",
    "blocks.#.ff_norm": "model.layers.#.post_attention_layernorm",
    "blocks.#.ff_proj": "model.layers.#.mlp.gate_proj",
    "blocks.#.up_proj": "model.layers.#.mlp.up_proj",
    "blocks.#.ff_out": "model.layers.#.mlp.down_proj",
}
LLADA_NAMES = {dream: llada for llada, dream in DREAM_NAMES.items()}
DREAM_FIELDS = {
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_model": "hidden_size",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
}


def rename(name: str, names: dict[str, str]) -> str:
    module, kind = name.rsplit(".", 1)
    layer = re.search(r"\d+", module)
    return names[re.sub(r"\d+", "#", module)].replace("#", layer[0] if layer else "") + "." + kind


def write_dream_checkpoint(directory: Path, seed: int = 0, kv_heads: int = 1, **changes: Any) -> Path:
    """Writes a Dream of two layers, width 16 and two heads, with random weights and arithmetic's words."""
    tensors = random_tensors(seed, kv_heads)
    generator = torch.Generator().manual_seed(seed + 1)
    for name in [name for name in tensors if re.search(r"[qkv]_proj", name)]:
        tensors[name.replace("weight", "bias")] = torch.randn(len(tensors[name]), generator=generator)
    named = {rename(name, DREAM_NAMES): tensor for name, tensor in tensors.items()}
    return write_files(directory, "dream", named, kv_heads, changes)


class ReferenceDream(ReferenceLLaDA):
    """Logits ``(T, V)`` of one unpadded sequence, in float32; row i is about token i."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.config = {llada: self.config[dream] for llada, dream in DREAM_FIELDS.items()}
        self.weights = {rename(name, LLADA_NAMES): tensor for name, tensor in self.weights.items()}

    def hidden(self, tokens: list[int]) -> Tensor:
        rows = super().hidden(tokens)
        return torch.cat([rows[:1], rows[:-1]])
