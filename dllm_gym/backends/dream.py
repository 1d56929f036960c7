"""The Dream checkpoint layout and its translation to transformers' Qwen2 classes.

Facts from the published ``config.json`` and tensor names of ``Dream-org/Dream-v0-Instruct-7B``
(arXiv 2508.15487). A Dream is a Qwen2 without causal mask, under Qwen2's own tensor names. It was made
from an autoregressive model and still predicts like one: row i - 1 of its output is about token i.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dllm_gym.backends.rope import read_rope
from dllm_gym.backends.stock import require
from dllm_gym.backends.word_tokenizer import SpecialTokens

if TYPE_CHECKING:
    from transformers import Qwen2Config

PUBLISHED = "Dream-org/Dream-v0-Instruct-7B"
SPECIAL_TOKENS = SpecialTokens(bos="<|beginoftext|>", eos="<|endoftext|>", eot="<|im_end|>", mask="<|mask|>")

# What a Dream's config must say for the Qwen2 arithmetic to be the same function.
_REQUIRED = {"hidden_act": "silu", "use_sliding_window": False}


def is_dream(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` describes a Dream; some copies write the ``model_type`` in lower case."""
    return str(config.get("model_type")).lower() == "dream" and "hidden_size" in config


def to_qwen2_config(config: Mapping[str, Any]) -> Qwen2Config:
    """Translates a Dream ``config.json`` to the config of the equivalent bidirectional Qwen2.

    Raises:
        ValueError: If the config asks for something the Qwen2 arithmetic does not do.
    """
    from transformers import Qwen2Config

    require("Dream", config, _REQUIRED)
    qwen2 = Qwen2Config(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters=read_rope("Dream", config),
        max_position_embeddings=config["max_position_embeddings"],
        tie_word_embeddings=config["tie_word_embeddings"],
        eos_token_id=config.get("eos_token_id"),
        pad_token_id=config.get("pad_token_id"),
        bos_token_id=None,
        use_cache=False,
    )
    qwen2.is_causal = False  # honoured by the mask builder and by every attention implementation
    return qwen2


def dream_config(
    *,
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    mlp_width: int,
    rope_theta: float,
    max_length: int,
    mask_token_id: int,
    eos_token_id: int,
) -> dict[str, Any]:
    """A ``config.json`` with exactly the fields of ``Dream-org/Dream-v0-Instruct-7B``, for another size.

    ``auto_map`` points at the publisher's repository, for those who load it with remote code; nothing
    here ever follows it.
    """
    remote = PUBLISHED + "--"
    return {
        "architectures": ["DreamModel"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": remote + "configuration_dream.DreamConfig",
            "AutoModel": remote + "modeling_dream.DreamModel",
        },
        "bos_token_id": eos_token_id,  # as published
        "eos_token_id": eos_token_id,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": mlp_width,
        "mask_token_id": mask_token_id,
        "max_position_embeddings": max_length,
        "max_window_layers": layers,
        "model_type": "Dream",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pad_token_id": eos_token_id,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab_size,
    }
