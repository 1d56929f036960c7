"""LLaDA-MoE and LLaDA2.x, mixtures of experts, as transformers' Qwen3-MoE and GLM-4-MoE classes.

Facts from ``ZHZisZZ/dllm`` (``dllm/pipelines/llada/models/*_lladamoe.py`` and
``dllm/pipelines/llada2``), which carries the publisher's code (arXiv 2509.24389, 2512.15745).

- LLaDA-MoE has the tensor names of OLMoE, but it normalises queries and keys per head. So does
  Qwen3-MoE, whose router is the same, too: softmax over all experts, the k largest not renormalised.
- LLaDA2.x routes like DeepSeek-V3: sigmoid scores, a correction bias that only chooses, groups of experts,
  a shared expert. GLM-4-MoE is that, with partial rotary embedding and normalised queries and keys. Its
  tensors have other names and hold queries, keys and values in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dllm_gym.backends.rope import read_rope
from dllm_gym.backends.stock import require

if TYPE_CHECKING:
    from transformers import Glm4MoeConfig, Qwen3MoeConfig

# What makes a Qwen3-MoE besides what every stock model has.
NEEDED = ("head_dim", "moe_intermediate_size", "num_experts", "num_experts_per_tok", "norm_topk_prob")

# What the configs must say for the stock classes to be the same function.
_LLADA_MOE_REQUIRED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "clip_qkv": None,
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "qk_layernorm": True,
    "routed_scaling_factor": 1,
    "shared_expert_intermediate_size": None,
}
_LLADA2_REQUIRED = {
    "hidden_act": "silu",
    "norm_head": False,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "use_bias": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_sliding_window": False,
}

# One capture group each, as everywhere: transformers substitutes only the first.
LLADA2_KEY_MAPPING = {
    r"^model\.word_embeddings\.": "model.embed_tokens.",
    r"^model\.layers\.(\d+)\.attention\.dense\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.layers\.(\d+)\.attention\.query_layernorm\.": r"model.layers.\1.self_attn.q_norm.",
    r"^model\.layers\.(\d+)\.attention\.key_layernorm\.": r"model.layers.\1.self_attn.k_norm.",
    r"^model\.layers\.(\d+)\.mlp\.gate\.expert_bias$": r"model.layers.\1.mlp.gate.e_score_correction_bias",
}


def is_llada_moe(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` describes a LLaDA-MoE; its ``model_type`` may be dense LLaDA's."""
    return config.get("model_type") in ("llada", "lladamoe") and "expert_intermediate_size" in config


def to_qwen3_moe_config(config: Mapping[str, Any]) -> Qwen3MoeConfig:
    """Translates a LLaDA-MoE ``config.json`` to the config of the equivalent bidirectional Qwen3-MoE.

    Raises:
        ValueError: If the config asks for something the Qwen3-MoE arithmetic does not do.
    """
    from transformers import Qwen3MoeConfig

    require("LLaDA-MoE", config, _LLADA_MOE_REQUIRED)
    heads = config["num_attention_heads"]
    sparse = config.get("moe_layer_freq") or [1] * config["num_hidden_layers"]
    qwen3 = Qwen3MoeConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        head_dim=config["hidden_size"] // heads,
        intermediate_size=config["dense_intermediate_size"],
        moe_intermediate_size=config["expert_intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        num_experts=config["num_experts"],
        num_experts_per_tok=config["num_experts_per_tok"],
        norm_topk_prob=False,  # whatever the config says: the publisher's code never reads it
        mlp_only_layers=[layer for layer, is_sparse in enumerate(sparse) if not is_sparse],
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters=read_rope("LLaDA-MoE", config),
        max_position_embeddings=config["max_position_embeddings"],
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        pad_token_id=None,
        use_cache=False,
    )
    qwen3.is_causal = False
    return qwen3


def is_llada2(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` describes a LLaDA2.0, 2.1 or 2.2."""
    return config.get("model_type") == "llada2_moe"


def to_glm4_moe_config(config: Mapping[str, Any]) -> Glm4MoeConfig:
    """Translates a LLaDA2 ``config.json`` to the config of the equivalent bidirectional GLM-4-MoE.

    Raises:
        ValueError: If the config asks for something the GLM-4-MoE arithmetic does not do.
    """
    from transformers import Glm4MoeConfig

    require("LLaDA2", config, _LLADA2_REQUIRED)
    if config["num_experts_per_tok"] < 2:
        raise ValueError("LLaDA2 config has num_experts_per_tok=1; only 2 and more are supported")
    glm4 = Glm4MoeConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        head_dim=config["head_dim"],
        intermediate_size=config["intermediate_size"],
        moe_intermediate_size=config["moe_intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        first_k_dense_replace=config["first_k_dense_replace"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        n_routed_experts=config["num_experts"],
        n_shared_experts=config["num_shared_experts"],
        num_experts_per_tok=config["num_experts_per_tok"],
        n_group=config["n_group"],
        topk_group=config["topk_group"],
        norm_topk_prob=True,
        routed_scaling_factor=config["routed_scaling_factor"],
        use_qk_norm=True,
        attention_bias=False,
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters=read_rope("LLaDA2", config, partial=True),
        max_position_embeddings=config["max_position_embeddings"],
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        pad_token_id=None,
        use_cache=False,
    )
    glm4.is_causal = False
    glm4.model_type = config["model_type"]  # under which ``llada2_conversions`` are registered
    return glm4


def llada2_conversions() -> list[Any]:
    """What renaming cannot do: queries, keys and values in one tensor, experts one by one."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import Split, WeightConverter

    fused = WeightConverter(
        source_patterns="attention.query_key_value.weight",
        target_patterns=[f"self_attn.{part}_proj.weight" for part in "qkv"],
        operations=[Split(dim=0)],
    )
    return [fused, *get_checkpoint_conversion_mapping("glm4_moe")]


def llada2_block(config: Mapping[str, Any], name: str) -> int:
    """Blocks of 32, as published; the config is silent."""
    return int(config.get("block_size") or 32)
