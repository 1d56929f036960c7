"""Encoders trained to fill masks: whatever transformers calls ``...ForMaskedLM``, ModernBERT-chat first.

The chat form of ``dllm-hub/ModernBERT-base-chat-v0.1`` and ``-large-chat-v0.1`` is that of
``ZHZisZZ/dllm`` (``dllm/utils/models.py``, ``get_tokenizer``): the turns are marked by ordinary text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm_gym.backends.rope import check_native

# What encoders were pretrained with besides, and positions that are no weights.
OTHER_HEADS = (r"\.pooler\.", r"^cls\.seq_relationship\.", r"\.position_ids$")

ANSWER_END = "[/Answer]"
CHAT_TEMPLATE = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{{- '[SYS]\n' + messages[0]['content'] | trim + '\n[/SYS]\n\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '[Question]\n' + message['content'] | trim + '\n[/Question]\n\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '[Answer]\n' + message['content'] | trim + '\n[/Answer]\n\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[Answer]\n' -}}{%- endif -%}"
)


def is_masked_lm(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` names an architecture ``...ForMaskedLM`` of a type transformers has."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    architectures = config.get("architectures") or []
    return config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES and any(
        str(name).endswith("ForMaskedLM") for name in architectures
    )


def is_modernbert(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` describes a ModernBERT that fills masks."""
    return config.get("model_type") == "modernbert" and is_masked_lm(config)


def native_config(config: Mapping[str, Any]) -> Any:
    """The config object of transformers' own class; ``auto_map`` is not followed."""
    from transformers import CONFIG_MAPPING

    fields = {key: value for key, value in config.items() if key != "auto_map"}
    native = CONFIG_MAPPING[config["model_type"]].from_dict(fields)
    check_native(config["model_type"], getattr(native, "rope_parameters", None) or {})
    return native
