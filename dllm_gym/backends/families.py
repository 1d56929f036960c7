"""Which checkpoints can be loaded, and how: one row per model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dllm_gym.backends import llada


@dataclass(frozen=True)
class Family:
    """How a family's checkpoints map to a stock transformers class.

    Attributes:
        name: Shown to the user.
        matches: Recognises a checkpoint by its whole ``config.json``.
        translate: ``config.json`` to the config of a transformers ``LlamaForCausalLM``.
        key_mapping: Checkpoint tensor names to transformers' names, as regular expressions.
        end_tokens: Tokens besides the end token after which a completion is over.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    translate: Callable[[Mapping[str, Any]], Any]
    key_mapping: Mapping[str, str]
    end_tokens: tuple[str, ...]


FAMILIES = (
    Family(
        name="LLaDA",
        matches=llada.is_dense_llada,
        translate=llada.to_llama_config,
        key_mapping=llada.KEY_MAPPING,
        end_tokens=("<|eot_id|>",),
    ),
)


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """The family a checkpoint's ``config.json`` belongs to.

    Raises:
        ValueError: If it is none of the known ones.
    """
    for family in FAMILIES:
        if family.matches(config):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ValueError(
        f"{source} is no supported dLLM: model_type={config.get('model_type')!r}, "
        f"architectures={config.get('architectures')!r}; supported families: {known}"
    )
