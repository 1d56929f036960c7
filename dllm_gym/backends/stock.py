"""Families whose checkpoints are a stock transformers model but for their ``model_type`` and attention.

The tensors have the names that transformers' own class expects and ``config.json`` has its fields, so
what is left is to take the class by name, to switch off its causal mask and to say how blocks see each
other. Sources: ``ZHZisZZ/dllm`` (A2D: ``dllm/pipelines/a2d``, ``dllm/core/samplers/bd3lm.py``),
``JetAstra/SDAR`` (``generate.py``; arXiv 2510.06303), ``Gen-Verse/dLLM-RL`` (TraDo; arXiv 2509.06949), the
``modeling.py`` published with Fast-dLLM v2 (arXiv 2509.26328) and the ``modeling_stable_diffcoder.py`` of
Stable-DiffCoder (arXiv 2601.15892).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dllm_gym.backends.rope import ROPE_TYPES, read_rope

Config = Mapping[str, Any]

# Fields that name another class, that a frozen dLLM must not take from its publisher, or that are read here.
_NOT_OURS = (
    *("model_type", "architectures", "auto_map", "use_cache", "is_causal", "torch_dtype", "dtype"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
)
# Fields in whose place the stock class would put the sizes of some other model.
_NEEDED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
)


def require(family: str, config: Config, required: Mapping[str, Any]) -> None:
    """Refuses a config that asks for something the family's transformers class does not do.

    Args:
        family: For the message.
        config: ``config.json``.
        required: Fields and the only value each may have; one that is absent is fine.

    Raises:
        ValueError: Naming the field, its value and the supported one.
    """
    for key, value in required.items():
        if config.get(key, value) != value:
            raise ValueError(f"{family} config has {key}={config[key]!r}; only {value!r} is supported")


def of_model_type(*model_types: str) -> Callable[[Config], bool]:
    """Recognises a ``config.json`` by its ``model_type``, in any case of letters."""
    return lambda config: str(config.get("model_type")).lower() in model_types


def is_stable_diffcoder(config: Config) -> bool:
    """Recognises Stable-DiffCoder, whose ``model_type`` is that of any Llama, by its architecture."""
    return "StableDiffcoderForCausalLM" in (config.get("architectures") or ())


def stock_config(family: str, config_class: str, *needed: str) -> Callable[[Config], Any]:
    """Makes the translation of a ``config.json`` to transformers' class of that name, made bidirectional.

    Args:
        family: For messages.
        config_class: Name of the config's class in transformers.
        *needed: Fields that must be there besides those that every family has.
    """

    def translate(config: Config) -> Any:
        import transformers

        require(family, config, {"hidden_act": "silu", "use_sliding_window": False})
        fields = {key: value for key, value in config.items() if key not in _NOT_OURS}
        fields |= {name: config[name] for name in (*_NEEDED, *needed)}  # which says what is missing
        fields["rope_parameters"] = read_rope(family, config, ROPE_TYPES)
        stock = getattr(transformers, config_class)(**fields, use_cache=False)
        stock.is_causal = False  # honoured by the mask builder and by every attention implementation
        return stock

    return translate


def a2d_block(config: Config, name: str) -> int | None:
    """Blocks of ``block_size``, published as 32, where the name has ``bd3lm`` in it; the config is silent."""
    return int(config.get("block_size") or 32) if "bd3lm" in name.lower() else None


def sdar_block(config: Config, name: str) -> int:
    """As the config or a name such as ``SDAR-8B-Chat-b32`` says; 4 otherwise, as published.

    Stable-DiffCoder is as silent, and its own ``generate_block`` takes 4, too.
    """
    suffix = re.search(r"-b(\d+)$", name)
    return int(config.get("block_size") or (suffix[1] if suffix else 4))


def fast_dllm_block(config: Config, name: str) -> int:
    """The config's ``bd_size``, published as 32."""
    return int(config.get("bd_size") or 32)
