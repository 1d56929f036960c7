"""The LLaDA checkpoint layout and its translation to transformers' Llama classes.

Facts from the published ``config.json`` and tensor names of ``GSAI-ML/LLaDA-8B-Instruct``
(arXiv 2502.09992). A dense LLaDA is a Llama without causal mask, so transformers' own class computes
it and no remote code is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dllm_gym.backends.rope import read_rope
from dllm_gym.backends.stock import require
from dllm_gym.backends.word_tokenizer import SpecialTokens

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig

PUBLISHED = "GSAI-ML/LLaDA-8B-Instruct"
SPECIAL_TOKENS = SpecialTokens(
    bos="<|startoftext|>", eos="<|endoftext|>", eot="<|eot_id|>", mask="<|mdm_mask|>"
)

# LLaDA name -> Llama name, as patterns for ``from_pretrained(key_mapping=...)``. Anchored: ``ff_out``
# is the head at top level and the down projection inside a block. One capture group each, because
# transformers substitutes only the first.
KEY_MAPPING = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}

# What a dense LLaDA's config must say for the Llama arithmetic to be the same function.
_REQUIRED = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "bias_for_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "scale_logits": False,
}


def is_dense_llada(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` describes a dense LLaDA (LLaDA-MoE shares the ``model_type``)."""
    return config.get("model_type") == "llada" and "d_model" in config and "num_experts" not in config


def is_tied_llada(config: Mapping[str, Any]) -> bool:
    """Whether it is a dense LLaDA whose head is its embedding, which of the published ones only iLLaDA is."""
    return is_dense_llada(config) and bool(config.get("weight_tying"))


def to_llama_config(config: Mapping[str, Any]) -> LlamaConfig:
    """Translates a LLaDA ``config.json`` to the config of the equivalent bidirectional Llama.

    Raises:
        ValueError: If the config asks for something the Llama arithmetic does not do.
    """
    from transformers import LlamaConfig

    require("LLaDA", config, _REQUIRED)
    llama = LlamaConfig(
        vocab_size=config.get("embedding_size") or config["vocab_size"],
        hidden_size=config["d_model"],
        intermediate_size=config["mlp_hidden_size"],
        num_hidden_layers=config["n_layers"],
        num_attention_heads=config["n_heads"],
        num_key_value_heads=config.get("n_kv_heads") or config["n_heads"],
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters=read_rope("LLaDA", config),
        max_position_embeddings=config["max_sequence_length"],
        tie_word_embeddings=config["weight_tying"],
        eos_token_id=config.get("eos_token_id"),
        pad_token_id=config.get("pad_token_id"),
        bos_token_id=None,
        use_cache=False,
    )
    llama.is_causal = False  # honoured by the mask builder and by every attention implementation
    return llama


def llada_config(
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
    """A ``config.json`` with exactly the fields of ``GSAI-ML/LLaDA-8B-Instruct``, for another size.

    ``auto_map`` points at the publisher's repository, for those who load it with remote code; nothing
    here ever follows it.
    """
    remote = PUBLISHED + "--"
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": {
            "AutoConfig": remote + "configuration_llada.LLaDAConfig",
            "AutoModel": remote + "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": remote + "modeling_llada.LLaDAModelLM",
        },
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": width,
        "embedding_dropout": 0.0,
        "embedding_size": vocab_size,
        "eos_token_id": eos_token_id,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": mask_token_id,
        "max_sequence_length": max_length,
        "mlp_hidden_size": mlp_width,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "n_layers": layers,
        "pad_token_id": eos_token_id,
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": rope_theta,
        "scale_logits": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": vocab_size,
        "weight_tying": False,
    }


def to_llada_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of a ``LlamaForCausalLM`` to LLaDA's names: ``KEY_MAPPING`` backwards."""
    backwards = [
        (re.escape(llama).replace(re.escape(r"\1"), r"(\d+)"), pattern[1:].replace(r"(\d+)", r"\1"))
        for pattern, llama in KEY_MAPPING.items()
    ]
    renamed = {}
    for name, tensor in state.items():
        for pattern, llada in backwards:
            new, count = re.subn("^" + pattern, llada.replace(r"\.", "."), name)
            if count:
                renamed[new] = tensor
                break
        else:
            raise ValueError(f"no LLaDA name for the tensor {name!r}")
    return renamed
