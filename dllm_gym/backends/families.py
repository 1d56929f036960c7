"""Which checkpoints can be loaded, and how: one row per model family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dllm_gym.backends import dream, llada
from dllm_gym.backends.word_tokenizer import SpecialTokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Family:
    """How a family's checkpoints map to a stock transformers class.

    Attributes:
        name: Shown to the user.
        published: A checkpoint of this layout.
        matches: Recognises a checkpoint by its whole ``config.json``.
        model_class: Name of the transformers class that computes it.
        translate: ``config.json`` to the config of that class.
        key_mapping: Checkpoint tensor names to transformers' names, as regular expressions.
        shift_logits: Whether row i - 1 of the output is about token i, row 0 being about tokens 0 and 1.
        tokenizer_class: Name of the transformers class that reads the publisher's tokenizer files; a
            ``tokenizer.json`` needs none of its own.
        special_tokens: As the publisher's tokenizer spells them.
        write_config: Sizes to a ``config.json`` with the publisher's fields.
        checkpoint_names: Tensors under transformers' names to the same under the checkpoint's.
    """

    name: str
    published: str
    matches: Callable[[Mapping[str, Any]], bool]
    model_class: str
    translate: Callable[[Mapping[str, Any]], Any]
    key_mapping: Mapping[str, str]
    shift_logits: bool
    tokenizer_class: str
    special_tokens: SpecialTokens
    write_config: Callable[..., dict[str, Any]]
    checkpoint_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


FAMILIES = (
    Family(
        name="LLaDA",
        published=llada.PUBLISHED,
        matches=llada.is_dense_llada,
        model_class="LlamaForCausalLM",
        translate=llada.to_llama_config,
        key_mapping=llada.KEY_MAPPING,
        shift_logits=False,
        tokenizer_class="PreTrainedTokenizerFast",
        special_tokens=llada.SPECIAL_TOKENS,
        write_config=llada.llada_config,
        checkpoint_names=llada.to_llada_names,
    ),
    Family(
        name="Dream",
        published=dream.PUBLISHED,
        matches=dream.is_dream,
        model_class="Qwen2ForCausalLM",
        translate=dream.to_qwen2_config,
        key_mapping={},
        shift_logits=True,
        tokenizer_class="Qwen2Tokenizer",
        special_tokens=dream.SPECIAL_TOKENS,
        write_config=dream.dream_config,
        checkpoint_names=dict,
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


def family_named(layout: str) -> Family:
    """The family whose name in lower case is ``layout``.

    Raises:
        ValueError: If there is none.
    """
    families = {family.name.lower(): family for family in FAMILIES}
    if layout not in families:
        raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(families)}")
    return families[layout]
